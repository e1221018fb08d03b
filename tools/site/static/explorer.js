// Explorers where no kernel is: sliders and menus over pictures that were drawn beforehand.
for (const box of document.querySelectorAll(".explorer")) {
  const {about, controls: names, frames} = JSON.parse(box.dataset.drawn);
  const [form, said, image] = ["form", "[role=status]", "img"].map(part => box.querySelector(part));
  const places = name => [...new Set(frames.map(f => f.values[name]))].sort((a, b) => typeof a == "number" ? a - b : 0);
  const alike = (a, b) => names.filter(name => a.values[name] === b.values[name]).length;

  const controls = names.map(name => {
    const all = places(name), slider = typeof all[0] == "number", label = form.appendChild(document.createElement("label"));
    label.append(name.replaceAll("_", " "));
    const knob = label.appendChild(document.createElement(slider ? "input" : "select"));
    const value = slider && label.appendChild(document.createElement("output"));
    if (slider) Object.assign(knob, {type: "range", min: 0, max: all.length - 1});
    else knob.append(...all.map((option, i) => new Option(String(option), i)));
    knob.addEventListener("input", () => {
      const there = frames.filter(f => f.values[name] === all[knob.value]);
      show(there.reduce((a, b) => alike(b, now) > alike(a, now) ? b : a));
    });
    return frame => {
      knob.value = all.indexOf(frame.values[name]);
      if (slider) { value.value = frame.values[name]; knob.setAttribute("aria-valuetext", frame.values[name]); }
    };
  });

  let now;
  function show(frame) {
    now = frame;
    for (const set of controls) set(frame);
    said.innerHTML = frame.said;
    if (!frame.src) return;
    image.src = frame.src;
    image.alt = `${about} ${names.map(name => `${name.replaceAll("_", " ")}: ${frame.values[name]}`).join(", ")}`;
  }
  show(frames[0]);
}
