"use strict";
/* The large view: pictures of the page at the size of the window, and of views from above the points themselves, which
   can be moved, enlarged, asked and filtered. Nothing is fetched: points stand in the page as bytes, 2 for each
   coordinate in centimetres and 1 for each label. */
(() => {
  const byId = (name) => document.getElementById(name);
  const dialog = byId("large"), canvas = byId("large-canvas"), image = new Image(), status = byId("large-status");
  const shared = JSON.parse(byId("large-shared").textContent); // classes and verdicts: [name, colour] each
  const frames = new Map([...document.querySelectorAll("script.cloud")].map((node) => [node.dataset.frame, node]));
  const links = () => [...document.querySelectorAll("[data-large]")].filter((one) => !one.closest("[hidden]"));
  const FAINT = [61, 68, 77], GROUND = [21, 24, 29], RINGS_M = [10, 20, 40, 80];
  const UNSURE = [255, 210, 63], SURE = [76, 106, 146]; // ends of the scale of confidence
  const NEAR_PX = 9;
  let cloud = null, layer = 0, hidden = new Set(), scale = 1, middle = [0, 0], current = null, drag = null;

  /* -- bytes and colours ------------------------------------------------------------------------------------------ */

  const bytes = (text) => Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
  const rgb = (colour) => [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16));
  const classColours = shared.classes.map(([, colour]) => rgb(colour));
  const verdictColours = shared.verdicts.map(([, colour]) => rgb(colour));

  /* Points and layers of a frame, decoded once. A layer says of point i which entry of its legend it is, -1 for none. */
  function decoded(node) {
    if (node.cloud) return node.cloud;
    const told = JSON.parse(node.textContent), raw = bytes(told.xyz).buffer, n = told.points;
    const [right, ahead, above] = [0, 1, 2].map((row) => new Int16Array(raw, 2 * n * row, n));
    const tables = told.layers.map((one) => ({
      name: one.table, title: one.title, label: bytes(one.label), confidence: one.confidence && bytes(one.confidence),
    }));
    const of = (name) => tables.find((table) => table.name === name);
    const named = tables.map((table) => ({
      title: table.title, legend: shared.classes, colours: classColours, first: 1,
      entry: (i) => (table.label[i] > 0 ? table.label[i] : -1),
    }));
    const compared = told.comparisons.map(({ title, answer, reference }) => ({
      title, legend: shared.verdicts, colours: verdictColours, first: 0, by: of(reference).label,
      entry: (i) => {
        const said = of(answer).label[i], held = of(reference).label[i];
        return held === 0 ? -1 : said === 0 ? 2 : said === held ? 0 : 1;
      },
    }));
    const doubted = tables.filter((table) => table.confidence).map((table) => ({
      title: `Confidence, ${table.title.toLowerCase()}`, legend: [["unsure", "#ffd23f"], ["sure", "#4c6a92"]], first: 0,
      shade: (i) => UNSURE.map((part, k) => part + (SURE[k] - part) * (table.confidence[i] / 255)),
      entry: (i) => (table.label[i] > 0 ? 0 : -1), by: table.label,
    }));
    node.cloud = { ...told, n, right, ahead, above, tables, seen: bytes(told.seen), all: [...named, ...compared, ...doubted] };
    return node.cloud;
  }

  const classAt = (one, i) => (one.by ? one.by[i] : one.entry(i));
  const isShown = (one, i) => one.entry(i) >= 0 && !hidden.has(classAt(one, i));

  /* -- drawing ---------------------------------------------------------------------------------------------------- */

  const toPx = (x_m, y_m) => [canvas.width / 2 + (x_m - middle[0]) * scale, canvas.height / 2 - (y_m - middle[1]) * scale];

  function draw() {
    if (!cloud) return;
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.max(1, Math.round(canvas.clientWidth * ratio));
    canvas.height = Math.max(1, Math.round(canvas.clientHeight * ratio));
    const { width, height } = canvas, context = canvas.getContext("2d");
    const pixels = context.createImageData(width, height), one = cloud.all[layer];
    const words = new Uint32Array(pixels.data.buffer);
    const word = ([red, green, blue]) => (255 << 24) | (blue << 16) | (green << 8) | red;
    words.fill(word(GROUND));
    const side = Math.min(7, Math.max(2, Math.round(scale * 0.16)));
    const palette = one.colours ? one.colours.map(word) : null;
    for (const drawn of [false, true]) {
      for (let i = 0; i < cloud.n; i += 1) {
        if (isShown(one, i) !== drawn) continue;
        const [x, y] = toPx(cloud.right[i] / 100, cloud.ahead[i] / 100);
        const size = drawn ? side : 1, left = Math.round(x - size / 2), top = Math.round(y - size / 2);
        if (left < 0 || top < 0 || left + size > width || top + size > height) continue;
        const colour = !drawn ? word(FAINT) : palette ? palette[one.entry(i)] : word(one.shade(i));
        for (let down = 0; down < size; down += 1) words.fill(colour, (top + down) * width + left, (top + down) * width + left + size);
      }
    }
    context.putImageData(pixels, 0, 0);
    context.strokeStyle = "#59636e";
    context.fillStyle = "#aab4bf";
    context.font = `${13 * ratio}px system-ui, sans-serif`;
    for (const radius of RINGS_M) {
      const [x, y] = toPx(0, 0);
      context.beginPath();
      context.arc(x, y, radius * scale, 0, 2 * Math.PI);
      context.stroke();
      context.fillText(`${radius} m`, x + 4, y - radius * scale - 4);
    }
  }

  const fit = () => {
    scale = (Math.min(canvas.clientWidth, canvas.clientHeight) * (window.devicePixelRatio || 1)) / 100;
    middle = [0, 0];
  };

  /* -- what is where ---------------------------------------------------------------------------------------------- */

  function told(i) {
    const parts = cloud.tables.map((table) => {
      const sure = table.confidence && table.label[i] ? ` (${Math.round(table.confidence[i] / 2.55)} %)` : "";
      return `${table.title}: ${table.label[i] ? shared.classes[table.label[i]][0] : "no class"}${sure}`;
    });
    const range = Math.hypot(cloud.right[i], cloud.ahead[i]) / 100;
    return `${range.toFixed(1)} m away, ${(cloud.above[i] / 100).toFixed(1)} m above the LiDAR, ${cloud.seen[i] ? "" : "not "}seen by a camera. ${parts.join(". ")}`;
  }

  function ask(x_px, y_px) {
    let best = -1, least = NEAR_PX * (window.devicePixelRatio || 1);
    for (let i = 0; i < cloud.n; i += 1) {
      const [x, y] = toPx(cloud.right[i] / 100, cloud.ahead[i] / 100), apart = Math.hypot(x - x_px, y - y_px);
      if (apart < least) [best, least] = [i, apart];
    }
    status.textContent = best < 0 ? "No point is here." : told(best);
  }

  /* -- the window ------------------------------------------------------------------------------------------------- */

  function button(text, pressed, act) {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = text;
    made.setAttribute("aria-pressed", String(pressed));
    made.addEventListener("click", act);
    return made;
  }

  function controls() {
    const one = cloud.all[layer], present = new Set();
    for (let i = 0; i < cloud.n; i += 1) if (one.entry(i) >= 0) present.add(classAt(one, i));
    byId("large-layers").replaceChildren(
      ...cloud.all.map((each, number) => button(`${number + 1} ${each.title}`, number === layer, () => choose(number))));
    const chips = one.colours === classColours ? [] : one.legend;
    byId("large-legend").replaceChildren(...chips.map(([name, colour]) => chip(name, colour)),
      ...[...present].sort((a, b) => a - b).map((number) => {
        const [name, colour] = shared.classes[number];
        const made = button(name, !hidden.has(number), () => { hidden.has(number) ? hidden.delete(number) : hidden.add(number); refresh(); });
        made.dataset.class = String(number);
        made.title = "show or hide this class";
        if (one.colours === classColours) made.prepend(square(colour));
        return made;
      }));
  }

  function square(colour) {
    const made = document.createElement("span");
    made.className = "chip";
    made.style.background = colour;
    return made;
  }

  function chip(name, colour) {
    const made = document.createElement("span");
    made.append(square(colour), name);
    return made;
  }

  function entitle(text) {
    const heading = current.closest("section")?.querySelector("h3, h4")?.textContent;
    byId("large-title").textContent = [heading, text].filter(Boolean).join(": ");
  }

  function refresh() {
    const focused = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.class : undefined;
    controls();
    entitle(cloud.all[layer].title);
    if (focused !== undefined) byId("large-legend").querySelector(`[data-class="${focused}"]`)?.focus();
    draw();
  }

  function choose(number) {
    if (!cloud || number >= cloud.all.length) return;
    layer = number;
    refresh();
    canvas.focus();
  }

  function step(forward) {
    const all = links(), at = all.indexOf(current);
    open(all[(at + forward + all.length) % all.length]);
  }

  function open(link) {
    const node = frames.get(link.dataset.cloud || ""), before = cloud;
    current = link;
    cloud = node ? decoded(node) : null;
    canvas.hidden = !cloud;
    image.hidden = Boolean(cloud);
    if (!dialog.open) dialog.showModal();
    byId("large-keys").textContent = cloud
      ? "Keys: 1 to 9 layers, arrows move, + and − enlarge, 0 all, N and P other pictures, Esc ends"
      : "Keys: N or → the next picture, P or ← the one before, Esc ends";
    if (cloud) {
      const wanted = cloud.all.findIndex((one) => one.title === link.dataset.large);
      layer = wanted >= 0 ? wanted : Math.min(layer, cloud.all.length - 1);
      if (cloud !== before) fit();
      status.textContent = cloud.every > 1 ? `Every ${cloud.every}th point is shown.` : "";
      refresh();
      canvas.focus();
    } else {
      for (const part of ["large-layers", "large-legend"]) byId(part).replaceChildren();
      const picture = link.querySelector("img");
      image.src = picture.src;
      image.alt = picture.alt;
      image.classList.toggle("drawn", /\.svg$|^data:image\/svg/.test(picture.src));
      entitle(link.dataset.large);
      status.textContent = picture.alt;
      byId("large-close").focus();
    }
  }

  function zoom(factor, x_px = canvas.width / 2, y_px = canvas.height / 2) {
    const next = Math.min(400, Math.max(1, scale * factor));
    middle = [middle[0] + (x_px - canvas.width / 2) * (1 / scale - 1 / next), middle[1] - (y_px - canvas.height / 2) * (1 / scale - 1 / next)];
    scale = next;
    draw();
  }

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const pan = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    const key = event.key.toLowerCase();
    if (key === "n" || (!cloud && key === "arrowright")) step(1);
    else if (key === "p" || (!cloud && key === "arrowleft")) step(-1);
    else if (!cloud) return;
    else if (pan) {
      const step = (0.1 * canvas.width) / scale;
      middle = [middle[0] + step * pan[0], middle[1] + step * pan[1]];
      draw();
      ask(canvas.width / 2, canvas.height / 2);
    } else if (key === "+" || key === "=") zoom(1.3);
    else if (key === "-") zoom(1 / 1.3);
    else if (key === "0") { fit(); draw(); }
    else if (key >= "1" && key <= "9") choose(Number(key) - 1);
    else return;
    event.preventDefault();
  }

  const place = (event) => [event.offsetX, event.offsetY].map((one) => one * (window.devicePixelRatio || 1));
  canvas.addEventListener("wheel", (event) => { event.preventDefault(); zoom(event.deltaY < 0 ? 1.2 : 1 / 1.2, ...place(event)); }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => { drag = place(event); canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointerup", () => { drag = null; });
  canvas.addEventListener("pointermove", (event) => {
    const now = place(event);
    if (!drag) return ask(...now);
    middle = [middle[0] - (now[0] - drag[0]) / scale, middle[1] + (now[1] - drag[1]) / scale];
    drag = now;
    draw();
  });
  dialog.addEventListener("keydown", onKey);
  dialog.addEventListener("close", () => current.focus());
  window.addEventListener("resize", () => dialog.open && draw());
  byId("large-next").addEventListener("click", () => step(1));
  byId("large-before").addEventListener("click", () => step(-1));
  byId("large-close").addEventListener("click", () => dialog.close());
  for (const link of links()) {
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      open(link);
    });
    link.addEventListener("keydown", (event) => { if (!link.href && (event.key === "Enter" || event.key === " ")) { event.preventDefault(); open(link); } });
  }

  /* -- which frames are on the page ------------------------------------------------------------------------------- */

  const filter = byId("filter");
  function sift() {
    const scene = filter.elements.scene.value, kind = filter.elements.kind.value;
    let n_shown = 0;
    for (const card of document.querySelectorAll("section.frame")) {
      const fits = (!scene || card.dataset.scene === scene) && (!kind || card.dataset.classes.split(" ").includes(kind));
      card.hidden = !fits;
      n_shown += fits ? 1 : 0;
    }
    byId("n-shown").textContent = `${n_shown} of ${document.querySelectorAll("section.frame").length} frames`;
  }
  canvas.after(image);
  filter.hidden = false;
  filter.addEventListener("change", sift);
  filter.addEventListener("reset", () => setTimeout(sift));
  sift();
})();
