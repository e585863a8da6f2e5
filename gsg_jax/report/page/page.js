"use strict";
// Colours: as the device, light, dark.
{
  const schemes = { auto: "light dark", light: "light", dark: "dark" };
  const names = Object.keys(schemes);
  const button = document.getElementById("theme");
  let number = 0;
  button.addEventListener("click", () => {
    number = (number + 1) % names.length;
    document.documentElement.style.colorScheme = schemes[names[number]];
    button.textContent = `Colours: ${names[number]}`;
    document.dispatchEvent(new Event("recolour"));
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () =>
    document.dispatchEvent(new Event("recolour")));
}

// Charts: the figures at the pointer, or step by step with the arrow keys, from the table below.
for (const chart of document.querySelectorAll(".chart")) {
  const svg = chart.querySelector("svg[data-x]");
  const reading = chart.querySelector(".reading");
  const head = [...chart.querySelectorAll("thead th")].map((cell) => cell.textContent);
  const rows = [...chart.querySelectorAll("tbody tr")].map((row) =>
    [...row.children].map((cell) => cell.textContent));
  const xs = rows.map((row) => Number(row[0].replaceAll(",", "")));
  const [x0, x1, left, right] = svg.dataset.x.split(" ").map(Number);
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "path");
  cursor.setAttribute("class", "cursor");
  svg.append(cursor);
  let at = -1;
  const show = (row) => {
    at = Math.min(Math.max(row, 0), rows.length - 1);
    const x = left + ((xs[at] - x0) / (x1 - x0)) * (right - left);
    cursor.setAttribute("d", `M${x} 12V${svg.viewBox.baseVal.height - 34}`);
    reading.textContent = head
      .map((name, n) => (rows[at][n] ? `${name} ${rows[at][n]}` : ""))
      .filter(Boolean).join(", ");
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const place = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const x = x0 + ((place - left) / (right - left)) * (x1 - x0);
    let best = 0;
    xs.forEach((value, n) => { if (Math.abs(value - x) < Math.abs(xs[best] - x)) best = n; });
    show(best);
  });
  svg.addEventListener("keydown", (event) => {
    const moves = { ArrowRight: at + 1, ArrowLeft: at < 0 ? rows.length - 1 : at - 1, Home: 0, End: rows.length - 1 };
    if (!(event.key in moves)) return;
    event.preventDefault();
    show(moves[event.key]);
  });
}

// The map.
if (document.getElementById("map-data")) {
  const data = JSON.parse(document.getElementById("map-data").textContent);
  const canvas = document.getElementById("points");
  const chosenBox = document.getElementById("chosen");
  const tip = document.getElementById("tip");
  const num = data.group.length;
  const perSheet = data.columns * data.rows;
  const off = new Set();  // groups drawn faintly
  let kind = Object.keys(data.places)[0];
  let chosen = -1, hovered = -1;

  const hue = (group) => (group * 137.5 + 210) % 360;  // far apart for successive groups
  const isDark = () => getComputedStyle(document.documentElement).colorScheme === "dark" ||
    (getComputedStyle(document.documentElement).colorScheme !== "light" &&
      matchMedia("(prefers-color-scheme: dark)").matches);
  const colour = (group) => group < 0 ? "#888" :
    `hsl(${hue(group)} 70% ${(isDark() ? 68 : 42) + (Math.floor(group / 5) % 2 ? 10 : 0)}%)`;
  const groupName = (i) => data.group[i] < 0 ? "unknown" : data.groups[data.group[i]];
  const x = (i) => data.places[kind][2 * i], y = (i) => data.places[kind][2 * i + 1];

  let scale = 1, margin = 0;
  const where = (i) => [margin + x(i) * scale, margin + y(i) * scale];
  function draw() {
    const ratio = window.devicePixelRatio || 1;
    const side = canvas.clientWidth;
    canvas.width = canvas.height = Math.round(side * ratio);
    margin = 12;
    scale = (side - 2 * margin) / data.extent;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const radius = num > 3000 ? 1.7 : num > 500 ? 2.6 : 4;
    for (const faint of [true, false]) {
      pen.globalAlpha = faint ? 0.08 : 0.8;
      for (let i = 0; i < num; i++) {
        if (off.has(data.group[i]) !== faint) continue;
        const [px, py] = where(i);
        pen.fillStyle = colour(data.group[i]);
        pen.beginPath();
        pen.arc(px, py, radius, 0, 7);
        pen.fill();
      }
    }
    pen.globalAlpha = 1;
    for (const i of new Set([chosen, hovered])) {
      if (i < 0) continue;
      const [px, py] = where(i);
      pen.strokeStyle = getComputedStyle(document.body).color;
      pen.lineWidth = 2;
      pen.beginPath();
      pen.arc(px, py, radius + 4, 0, 7);
      pen.stroke();
    }
  }

  function picture(i) {
    const part = document.createElement("span");
    part.className = "picture";
    part.setAttribute("role", "img");
    part.setAttribute("aria-label", data.names[i]);
    if (i < data.numThumbnails) {
      const place = i % perSheet;
      const column = place % data.columns, row = Math.floor(place / data.columns);
      const sheet = Math.floor(i / perSheet);
      const inSheet = Math.min(perSheet, num - sheet * perSheet);
      const rows = Math.ceil(inSheet / data.columns);
      part.style.backgroundImage = `url(${data.sheets[sheet]})`;
      part.style.backgroundSize = `${100 * data.columns}% ${100 * rows}%`;
      part.style.backgroundPosition = `${(100 * column) / (data.columns - 1)}% ${rows > 1 ? (100 * row) / (rows - 1) : 0}%`;
    }
    return part;
  }
  const say = (tag, text) => Object.assign(document.createElement(tag), { textContent: text });

  function choose(i) {
    chosen = i;
    const near = document.createElement("div");
    near.className = "near";
    for (let n = 0; n < data.numNear; n++) {
      const other = data.near[data.numNear * i + n];
      const button = document.createElement("button");
      button.type = "button";
      button.title = `${data.names[other]}, ${groupName(other)}`;
      button.append(picture(other));
      button.addEventListener("click", () => {
        choose(other);
        chosenBox.querySelector("button").focus();  // the pressed button is gone
      });
      near.append(button);
    }
    chosenBox.replaceChildren(picture(i), say("p", `${data.names[i]}, ${groupName(i)}`), say("p", "Nearest:"), near);
    draw();
  }
  function nearest(px, py, far) {
    let best = -1, least = far * far;
    for (let i = 0; i < num; i++) {
      if (off.has(data.group[i])) continue;
      const [qx, qy] = where(i);
      const d = (px - qx) ** 2 + (py - qy) ** 2;
      if (d < least) { least = d; best = i; }
    }
    return best;
  }
  function hover(event) {
    const box = canvas.getBoundingClientRect();
    const i = nearest(event.clientX - box.left, event.clientY - box.top, 14);
    if (i !== hovered) {
      hovered = i;
      draw();
      if (i >= 0) tip.replaceChildren(picture(i), say("div", data.names[i]), say("div", groupName(i)));
    }
    tip.hidden = i < 0;
    if (i < 0) return;
    const width = tip.offsetWidth, height = tip.offsetHeight;
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, document.documentElement.clientWidth - width - 4))}px`;
    tip.style.top = `${event.clientY + height + 20 > innerHeight ? event.clientY - height - 10 : event.clientY + 14}px`;
  }
  canvas.addEventListener("pointermove", hover);
  canvas.addEventListener("pointerleave", () => { hovered = -1; tip.hidden = true; draw(); });
  canvas.addEventListener("click", (event) => {
    const box = canvas.getBoundingClientRect();
    const i = nearest(event.clientX - box.left, event.clientY - box.top, 24);
    if (i >= 0) choose(i);
  });
  // The nearest image within 45 degrees of a direction.
  function beyond(dx, dy) {
    let best = -1, least = Infinity;
    for (let i = 0; i < num; i++) {
      if (i === chosen || off.has(data.group[i])) continue;
      const ax = x(i) - x(chosen), ay = y(i) - y(chosen);
      const along = ax * dx + ay * dy, across = Math.abs(ax * dy) + Math.abs(ay * dx);
      if (along > 0 && across <= along && ax * ax + ay * ay < least) { least = ax * ax + ay * ay; best = i; }
    }
    return best;
  }
  canvas.addEventListener("keydown", (event) => {
    const directions = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    let next;
    if (event.key in directions) next = chosen < 0 ? 0 : beyond(...directions[event.key]);
    else if (event.key === "n" || event.key === "N") next = (chosen + 1) % num;
    else if (event.key === "p" || event.key === "P") next = (Math.max(chosen, 0) + num - 1) % num;
    else if (event.key === "Home") next = 0;
    else if (event.key === "End") next = num - 1;
    else return;
    event.preventDefault();
    if (next >= 0) choose(next);
  });

  const buttons = [...document.querySelectorAll(".kind")];
  for (const button of buttons) button.addEventListener("click", () => {
    kind = button.dataset.kind;
    for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
    draw();
  });

  // Legend: chosen groups are highlighted; if none is chosen, all are shown.
  const list = document.getElementById("groups");
  const present = [...new Set(data.group)].sort((a, b) => a - b);
  const picked = new Set();
  for (const group of present) {
    const button = say("button", group < 0 ? "unknown" : data.groups[group]);
    button.type = "button";
    button.dataset.group = group;
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      if (!picked.delete(group)) picked.add(group);
      button.setAttribute("aria-pressed", String(picked.has(group)));
      off.clear();
      if (picked.size) for (const other of present) if (!picked.has(other)) off.add(other);
      draw();
    });
    const item = document.createElement("li");
    item.append(button);
    list.append(item);
  }
  function recolour() {
    for (const button of list.querySelectorAll("button"))
      button.style.setProperty("--group", colour(Number(button.dataset.group)));
    draw();
  }
  choose(0);
  document.addEventListener("recolour", recolour);
  new ResizeObserver(draw).observe(canvas);
  recolour();

  document.getElementById("coordinates").addEventListener("click", () => {
    const kinds = Object.keys(data.places);
    // A spreadsheet would compute a text that begins with one of these.
    const quote = (text) => `"${text.replace(/^[=+@\t\r-]/, "'$&").replaceAll('"', '""')}"`;
    const lines = [["image", "group", ...kinds.flatMap((name) => [`${name} x`, `${name} y`])].join(",")];
    for (let i = 0; i < num; i++)
      lines.push([quote(data.names[i]), quote(groupName(i)),
        ...kinds.flatMap((name) => [data.places[name][2 * i], data.places[name][2 * i + 1]])].join(","));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" }));
    link.download = "coordinates.csv";
    link.click();
    URL.revokeObjectURL(link.href);
  });
}
