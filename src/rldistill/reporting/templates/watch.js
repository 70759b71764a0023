// Replaces the parts of the page that changed, and keeps the focus and the position of what scrolls in them.
const offline = document.getElementById("offline");
const source = new EventSource("events");
source.onmessage = event => {
  offline.hidden = true;
  for (const [id, html] of Object.entries(JSON.parse(event.data))) {
    const part = document.getElementById(id);
    const before = [...part.querySelectorAll("[tabindex]")];
    const places = before.map(each => [each.scrollLeft, each.scrollTop]);
    const focused = before.indexOf(document.activeElement);
    part.innerHTML = html;
    part.querySelectorAll("[tabindex]").forEach((each, number) => {
      if (number < places.length) [each.scrollLeft, each.scrollTop] = places[number];
      if (number === focused) each.focus({preventScroll: true});
    });
  }
};
source.onerror = () => { offline.hidden = false; };
