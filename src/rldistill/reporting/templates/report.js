// The films of student and teacher play together: what a reader does with one happens to both.
// Nothing plays by itself for readers who prefer less motion.
const films = [...document.querySelectorAll(".playing video")];
const moving = matchMedia("(prefers-reduced-motion: no-preference)");
const silent = new Set(); // films that were paused with another one
const start = film => film.play().catch(() => {}); // a browser may refuse
const follow = leader => films.forEach(film => {
  const drift = film.currentTime - Math.min(leader.currentTime, film.duration);
  if (Math.abs(drift) > 0.2) film.currentTime = leader.currentTime;
  if (!leader.paused && film.paused && leader.currentTime < film.duration) start(film);
});
for (const film of films) {
  for (const event of ["play", "seeked"]) film.addEventListener(event, () => follow(film));
  film.addEventListener("pause", () => {
    if (silent.delete(film) || film.ended) return;
    films.filter(other => !other.paused).forEach(other => { silent.add(other); other.pause(); });
  });
  film.addEventListener("ended", () => {
    if (moving.matches && films.every(other => other.ended)) films.forEach(other => { other.currentTime = 0; start(other); });
  });
}
if (moving.matches) films.forEach(start);
