// The videos of student and teacher play together: an action of the reader on one applies to both.
// Nothing plays by itself for readers who prefer less motion.
const videos = [...document.querySelectorAll(".playing video")];
const moving = matchMedia("(prefers-reduced-motion: no-preference)");
const silent = new Set(); // videos that were paused with another one
const start = video => video.play().catch(() => {}); // a browser may refuse
const follow = leader => videos.forEach(video => {
  const drift = video.currentTime - Math.min(leader.currentTime, video.duration);
  if (Math.abs(drift) > 0.2) video.currentTime = leader.currentTime;
  if (!leader.paused && video.paused && leader.currentTime < video.duration) start(video);
});
for (const video of videos) {
  for (const event of ["play", "seeked"]) video.addEventListener(event, () => follow(video));
  video.addEventListener("pause", () => {
    if (silent.delete(video) || video.ended) return;
    videos.filter(other => !other.paused).forEach(other => { silent.add(other); other.pause(); });
  });
  video.addEventListener("ended", () => {
    if (moving.matches && videos.every(other => other.ended)) videos.forEach(other => { other.currentTime = 0; start(other); });
  });
}
if (moving.matches) videos.forEach(start);
