// The controls: what is asked of the model, and how its answers are shown.
"use strict";

const $ = (id) => document.getElementById(id);
const ROW_MILLISECONDS = 1200; // of a replay, all rows together
const WARM = [[13, 8, 135], [126, 3, 168], [204, 71, 120], [248, 149, 64], [240, 249, 33]];

let easel;
let about;

async function ask(path, body, type = "application/json") {
  const options = body === undefined ? {} : { method: "POST", body, headers: { "Content-Type": type } };
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("the playground does not answer; is it still running?");
  }
  const answer = await response.json().catch(() => ({ error: `status ${response.status}` }));
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

// Runs an action with the buttons at rest, and shows what went wrong.
async function busy(said, action) {
  complain("");
  const started = Date.now();
  const tick = () => ($("status").textContent = `${said} … ${Math.round((Date.now() - started) / 1000)} s`);
  tick();
  const clock = setInterval(tick, 1000);
  rest(true);
  try {
    $("status").textContent = await action(() => clearInterval(clock));
  } catch (error) {
    $("status").textContent = "";
    complain(error.message);
  } finally {
    clearInterval(clock);
    rest(false);
  }
}

function rest(is) {
  document.querySelectorAll("button, #file").forEach((control) => (control.disabled = is));
  $("complete").disabled = is || !about.paints;
}

// Shows what went wrong, at the control whose name it starts with as well.
function complain(said) {
  $("error").textContent = said;
  document.querySelectorAll("main input").forEach((input) =>
    input.setAttribute("aria-invalid", input.id !== "" && input.id === said.split(" ")[0]));
}

function wish() {
  const hidden = about.hides && easel.hidden.some(Boolean) ? easel.hidden : null;
  return {
    image: easel.url(),
    num_given: Number($("given").value) * easel.width,
    hidden,
    completions: $("completions").valueAsNumber,
    seed: $("seed").valueAsNumber,
    temperature: $("temperature").valueAsNumber,
    top_k: $("top_k").valueAsNumber,
    top_p: $("top_p").valueAsNumber,
  };
}

function complete() {
  return busy("Painting", async (stopClock) => {
    const asked = wish();
    const answer = await ask("/complete", JSON.stringify(asked));
    stopClock();
    $("hint").hidden = true;
    const seconds = `Painted in ${answer.seconds} s`;
    $("status").textContent = `${seconds}; now shown row by row.`;
    await replay(answer.images, asked);
    return `${seconds}.`;
  });
}

// The answer comes whole; this shows it again in the order in which it was painted.
async function replay(urls, asked) {
  const images = await Promise.all(urls.map(loaded));
  const origin = await loaded(asked.image);
  const first = asked.hidden ? 0 : asked.num_given / easel.width;
  const frames = images.map((image, i) => frame(asked.seed + i, image, first));
  $("pictures").replaceChildren(...frames.map((one) => one.figure));
  $("painted").hidden = false;
  $("legend").hidden = first === 0;
  reveal($("painted"));
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const pause = calm ? 0 : ROW_MILLISECONDS / Math.max(easel.height - first, 1);
  if (asked.hidden) frames.forEach(({ pen }) => pen.drawImage(origin, 0, 0));
  for (let row = 0; row < easel.height; row++) {
    frames.forEach(({ pen }, i) =>
      pen.drawImage(images[i], 0, row, easel.width, 1, 0, row, easel.width, 1));
    if (row >= first && pause) await new Promise((done) => setTimeout(done, pause));
  }
}

function reveal(element) {
  element.scrollIntoView({ block: "nearest" });
}

// A picture that fills up, its given rows marked, with its seed and a way to go on from it.
function frame(seed, image, given) {
  const figure = document.createElement("figure");
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [easel.width, easel.height];
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `Picture of seed ${seed}`);
  const caption = document.createElement("figcaption");
  const use = document.createElement("button");
  use.type = "button";
  use.textContent = "use";
  use.setAttribute("aria-label", `Use the picture of seed ${seed} as the image`);
  use.addEventListener("click", () => easel.show(image.src));
  caption.append(`seed ${seed}`, use);
  const picture = document.createElement("div");
  picture.className = "picture";
  picture.style.setProperty("--given", given / easel.height);
  picture.append(canvas);
  figure.append(picture, caption);
  return { figure, pen: canvas.getContext("2d") };
}

function score() {
  return busy("Scoring", async () => {
    const answer = await ask("/score", JSON.stringify({ image: easel.url() }));
    drawSurprise(answer.surprise);
    $("surprise-text").textContent = `Surprise: ${answer.nats_per_token.toFixed(3)} nats per pixel`;
    show($("surprise"));
    return "Scored: bright pixels surprised the model.";
  });
}

// An answer about the image as it is now; `outdate` dims it once the image changes.
function show(figure) {
  figure.hidden = false;
  figure.classList.remove("stale");
  $("hint").hidden = true;
  reveal(figure);
}

function outdate() {
  for (const id of ["surprise", "classes"]) $(id).classList.add("stale");
}

function drawSurprise(rows) {
  const map = $("map");
  [map.width, map.height] = [easel.width, easel.height];
  const most = Math.max(...rows.flat(), 1e-9);
  const pen = map.getContext("2d");
  const pixels = pen.createImageData(easel.width, easel.height);
  rows.flat().forEach((nats, i) => pixels.data.set([...warm(nats / most), 255], 4 * i));
  pen.putImageData(pixels, 0, 0);
  $("scale-text").textContent = `${most.toFixed(2)} nats`;
  map.onpointermove = map.onpointerdown = (event) => {
    const row = Math.min(Math.floor((event.offsetY / map.clientHeight) * easel.height), easel.height - 1);
    const column = Math.min(Math.floor((event.offsetX / map.clientWidth) * easel.width), easel.width - 1);
    const nats = rows[Math.max(row, 0)][Math.max(column, 0)];
    $("pixel-text").textContent = `Row ${row + 1}, column ${column + 1}: ${nats.toFixed(2)} nats`;
  };
}

function warm(share) {
  const place = Math.min(Math.max(share, 0), 1) * (WARM.length - 1);
  const low = Math.min(Math.floor(place), WARM.length - 2);
  return WARM[low].map((start, i) => start + (place - low) * (WARM[low + 1][i] - start));
}

function classify() {
  return busy("Classifying", async () => {
    const answer = await ask("/classify", JSON.stringify({ image: easel.url() }));
    $("classes").querySelector("tbody").replaceChildren(...answer.classes.slice(0, 10).map(classRow));
    show($("classes"));
    return `Most likely: ${answer.classes[0].name}.`;
  });
}

function classRow({ name, probability }) {
  const row = document.createElement("tr");
  const meter = document.createElement("meter");
  meter.value = probability;
  meter.setAttribute("aria-label", `Probability of ${name}`);
  for (const content of [name, meter, `${(100 * probability).toFixed(1)} %`]) {
    row.insertCell().append(content);
  }
  return row;
}

function upload(file) {
  if (!file || $("file").disabled) return;
  busy("Shrinking", async () => {
    $("file").value = "";
    if (file.size > about.most_bytes) throw new Error(`an upload must have at most ${about.most_bytes} bytes`);
    const answer = await ask("/shrink", file, "application/octet-stream");
    easel.hidden.fill(0);
    await easel.show(answer.image);
    return `${file.name}, ${easel.width}×${easel.height} pixels in the palette's colours.`;
  });
}

function introduce() {
  const [height, width] = about.image_size;
  const kind = about.hides ? "masked (BERT)" : "autoregressive";
  const nats = about.nats_per_token === null ? "" : ` · ${about.nats_per_token.toFixed(3)} nats/token held out`;
  const step = about.step === null ? "" : ` · step ${about.step}`;
  $("about").textContent = `${about.where} · ${kind}, ${width}×${height}${step}${nats}`;
  $("brushes").hidden = !about.hides;
  if (about.hides) {
    $("hint").textContent = "This model in-paints: give rows and hide any of their pixels with the " +
      "brush, and it fills in what is hidden or not given, the surest pixels first.";
  }
  if (!about.paints) $("hint").textContent = "This model does not paint.";
  $("complete").disabled = !about.paints;
  $("score").hidden = !about.scores;
  $("classify").hidden = !about.classifies;
  $("completions").max = about.most_completions;
  if (about.vocabulary_size) $("top_k").max = about.vocabulary_size;
}

function follow(id, show) {
  const update = () => ($(`${id}-value`).textContent = show($(id).valueAsNumber));
  $(id).addEventListener("input", update);
  update();
}

function chooseGiven(rows) {
  easel.given = rows;
  easel.cover();
  return `${rows} of ${easel.height}`;
}

async function start() {
  about = await ask("/about");
  const [height, width] = about.image_size;
  easel = new Easel($("canvas"), $("veil"), height, width, outdate);
  introduce();
  $("given").max = height;
  $("given").value = Math.ceil(height / 2);
  follow("given", chooseGiven);
  follow("temperature", (value) => value.toFixed(2));
  follow("top_p", (value) => value.toFixed(2));
  $("file").addEventListener("change", () => upload($("file").files[0]));
  $("canvas").addEventListener("dragover", (event) => event.preventDefault());
  $("canvas").addEventListener("drop", (event) => {
    event.preventDefault();
    upload(event.dataTransfer.files[0]);
  });
  $("clear").addEventListener("click", () => easel.clear());
  $("colour").addEventListener("input", (event) => (easel.colour = event.target.value));
  $("brushes").addEventListener("change", (event) => (easel.brush = event.target.value));
  $("complete").addEventListener("click", complete);
  $("again").addEventListener("click", () => {
    $("seed").value = Math.floor(Math.random() * 1e6);
    if (about.paints) complete();
  });
  $("score").addEventListener("click", score);
  $("classify").addEventListener("click", classify);
  document.body.dataset.ready = "yes";
}

start().catch((error) => complain(error.message));
