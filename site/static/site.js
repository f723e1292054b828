"use strict";
const LESSON = /\/notebooks\/(\d\d_\w+)\.html/;
const STORE = "fgnet-finished";

// --- figures: a click enlarges; on a phone, panels side by side are shown one below the other -------------------------

function makeDialog() {
  const dialog = document.createElement("dialog");
  dialog.className = "enlarged";
  dialog.setAttribute("aria-label", "Enlarged figure");
  dialog.innerHTML = '<form method="dialog"><button>Close</button></form><div tabindex="0" role="group" aria-label="Figure"><img alt=""></div>';
  dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
  document.body.append(dialog);
  return dialog;
}

function enlarge(dialog, picture) {
  const large = dialog.querySelector("img");
  large.src = picture.src;
  large.alt = picture.alt;
  large.style.width = `${Math.max(picture.naturalWidth, Math.min(2 * picture.naturalWidth, 0.9 * innerWidth))}px`;
  dialog.showModal();
}

// The longest piece of each column that is not white, in pixels: 0 where the column is empty.
function measureColumns(picture) {
  const { naturalWidth: width, naturalHeight: height } = picture;
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  context.drawImage(picture, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  return Array.from({ length: width }, (_, x) => {
    let longest = 0;
    for (let y = 0, piece = 0; y < height; y++) {
      const at = 4 * (y * width + x);
      const white = data[at + 3] === 0 || Math.min(data[at], data[at + 1], data[at + 2]) >= 250;
      piece = white ? 0 : piece + 1;
      longest = Math.max(longest, piece);
    }
    return longest;
  });
}

// Where empty columns part the panels of a figure: [start, end] of each, in pixels; null if there is one panel only.
function findPanels(picture) {
  const { naturalWidth: width, naturalHeight: height } = picture;
  if (width < 500) return null;
  const columns = measureColumns(picture), gaps = [];
  for (let x = 0, start = null; x < width; x++) {
    if (columns[x] === 0) start ??= x;
    else if (start !== null) {
      if (start > 0 && x - start >= 5) gaps.push({ start, end: x });
      start = null;
    }
  }
  // a colour bar stays with the panel on its left
  const longest = (from, to) => Math.max(...columns.slice(from, to));
  const isBar = (from, to) => to - from < 0.06 * width && longest(from, to) > 0.3 * height;
  const wide = gaps.filter(({ end }, k) => !isBar(end, gaps[k + 1]?.start ?? width))
    .sort((a, b) => b.end - b.start - (a.end - a.start));
  let edges = [0, width], least = 0;
  for (const { start, end } of wide) {  // the widest first; much narrower ones lie between text and axes
    const tried = [...edges, Math.round((start + end) / 2)].sort((a, b) => a - b);
    if (end - start < least || tried.some((edge, k) => k && edge - tried[k - 1] < 0.18 * width)) continue;
    if (tried.slice(1, -1).some((edge, k) => longest(tried[k], edge) < 0.2 * height)) continue;  // text before its axes
    edges = tried;
    least ||= 0.4 * (end - start);
  }
  const panels = edges.slice(1).map((edge, k) => [edges[k], edge]);
  const tall = panels.some(([start, end]) => height > 2.5 * (end - start));  // several rows: longer than a screen
  return panels.length > 1 && !tall ? panels : null;
}

function stack(link, picture) {
  let panels = null;
  try { panels = findPanels(picture); } catch { return; }  // opened as a file: the browser lets no script see pixels
  if (!panels) return;
  const { naturalWidth: width, naturalHeight: height } = picture;
  const column = document.createElement("span");
  column.className = "stacked";
  column.setAttribute("role", "img");
  column.setAttribute("aria-label", picture.alt);
  for (const [start, end] of panels) {
    const part = document.createElement("span");
    part.style.backgroundImage = `url("${picture.src}")`;
    part.style.backgroundSize = `${100 * width / (end - start)}% 100%`;
    part.style.backgroundPosition = `${100 * start / (width - end + start)}% 0`;
    part.style.aspectRatio = `${end - start} / ${height}`;
    column.append(part);
  }
  link.classList.add("has-stack");
  link.append(column);
}

function showFigures() {
  const pictures = document.querySelectorAll(".cell_output img, .bd-article > section > p > img");
  const dialog = pictures.length ? makeDialog() : null;
  for (const picture of pictures) {
    const link = Object.assign(document.createElement("a"), { href: picture.src, className: "figure", title: "Enlarge" });
    picture.replaceWith(link);
    link.append(picture);
    link.addEventListener("click", event => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      enlarge(dialog, picture);
    });
    if (matchMedia("(max-width: 600px)").matches)
      picture.decode().then(() => stack(link, picture)).catch(() => {});
  }
}

// --- progress across lessons, kept in this browser --------------------------------------------------------------------

function finished() {
  try { return new Set(JSON.parse(localStorage.getItem(STORE)) || []); } catch { return new Set(); }
}

function setFinished(lesson, done) {
  const lessons = finished();
  if (done) lessons.add(lesson); else lessons.delete(lesson);
  try { localStorage.setItem(STORE, JSON.stringify([...lessons])); } catch { return; }  // storage is switched off
  showProgress();
}

function showProgress() {
  const lessons = finished();
  for (const link of document.querySelectorAll(".bd-links a")) {
    const name = (LESSON.exec(link.href) || [])[1];
    if (name) link.classList.toggle("finished", lessons.has(name));
  }
  const all = [...document.querySelectorAll("li.lesson")];
  for (const card of all) card.classList.toggle("finished", lessons.has(card.dataset.lesson));
  const line = document.getElementById("progress");
  if (line && lessons.size) {
    const next = all.find(card => !lessons.has(card.dataset.lesson));
    line.textContent = `You have finished ${all.filter(card => lessons.has(card.dataset.lesson)).length} of ${all.length} lessons. `;
    if (next) line.append("Go on with ", Object.assign(document.createElement("a"), {
      href: next.querySelector("a").href, textContent: next.querySelector(".name").textContent }), ".");
  }
}

function addMark() {
  const name = (LESSON.exec(location.pathname) || [])[1], article = document.querySelector(".bd-article > section");
  if (!name || !article) return;
  const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: finished().has(name) });
  box.addEventListener("change", () => setFinished(name, box.checked));
  const label = Object.assign(document.createElement("label"), { className: "finish" });
  label.append(box, " I have finished this lesson");
  article.append(label);
}

// --- explorers in frames: as high as they need, and as light or dark as the page --------------------------------------

function sendTheme() {
  const theme = document.documentElement.dataset.theme;
  for (const frame of document.querySelectorAll(".explorer iframe"))
    frame.contentWindow.postMessage({ fgnetTheme: theme }, "*");
}

window.addEventListener("message", event => {
  const frames = [...document.querySelectorAll(".explorer iframe")];
  const frame = frames.find(frame => frame.contentWindow === event.source);
  if (!frame || !Number.isFinite(event.data.fgnetHeight)) return;
  frame.style.height = `${event.data.fgnetHeight + 2}px`;
  sendTheme();
});

document.addEventListener("DOMContentLoaded", () => {
  showFigures();
  addMark();
  showProgress();
  new MutationObserver(sendTheme).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  for (const toggle of document.querySelectorAll(".bd-links summary"))
    toggle.setAttribute("aria-label", "Show the pages in this part");
  // Sphinx writes a signature of several lines as a list of descriptions without terms: to a reader it is plain text
  for (const part of document.querySelectorAll(".sig > dl, .sig > dl > dd")) part.setAttribute("role", "presentation");
  // what scrolls has to be reached by keys
  for (const part of document.querySelectorAll("pre, div.math, .pst-scrollable-table-container, .output.text_html"))
    if (part.scrollWidth > part.clientWidth) part.tabIndex = 0;
});
