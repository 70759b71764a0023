let policy = null;
require("readline").createInterface({ input: process.stdin }).on("line", (line) => {
  const request = JSON.parse(line);
  if (policy === null) {
    policy = new Policy(request);
    console.log("{}");
    return;
  }
  policy.reset();
  if (request.state) policy.state = Float32Array.from(request.state);
  const result = policy.step(request.observation);
  console.log(JSON.stringify({ ...result, state: [...policy.state] }));
});
