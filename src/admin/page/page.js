const out = document.getElementById("out");
const events = new EventSource("events");
for (const kind of ["state", "tick"]) {
  events.addEventListener(kind, (event) => {
    out.textContent = kind + " " + JSON.stringify(JSON.parse(event.data), null, 1);
  });
}
