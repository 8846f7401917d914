// The controls: what is asked of the model, and how its answers are shown.
"use strict";

const $ = (id) => document.getElementById(id);
const REPLAY_MILLISECONDS = 1200; // of all rows together
const SAVED_SIDE = 256; // pixels: saved images are enlarged to about this
const COLOUR_MAP = [[13, 8, 135], [126, 3, 168], [204, 71, 120], [248, 149, 64], [240, 249, 33]];

let editor;
let about;
let heldout = { index: 0, count: 0 };
let results = []; // of the last completion: { seed, image }
let numChanges = 0; // of the image in the editor

const has = (signature) => about.signatures.includes(signature);
const isMasked = () => has("inpaint");

async function request(path, body, type = "application/json") {
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

// Runs an action with the buttons disabled, and shows its error if it fails.
async function run(label, action) {
  showError("");
  const started = Date.now();
  const tick = () => ($("status").textContent = `${label} … ${Math.round((Date.now() - started) / 1000)} s`);
  tick();
  const clock = setInterval(tick, 1000);
  disable(true);
  try {
    $("status").textContent = await action(() => clearInterval(clock));
  } catch (error) {
    $("status").textContent = "";
    showError(error.message);
  } finally {
    clearInterval(clock);
    disable(false);
  }
}

function disable(isDisabled) {
  document.querySelectorAll("button, #file").forEach((control) => (control.disabled = isDisabled));
  $("complete").disabled = $("again").disabled = isDisabled || !has("complete");
}

// Shows an error, and marks the control whose name it starts with.
function showError(message) {
  $("error").textContent = message;
  document.querySelectorAll("main input").forEach((input) =>
    input.setAttribute("aria-invalid", input.id !== "" && input.id === message.split(" ")[0]));
}

function completionRequest(completions) {
  const hidden = isMasked() && editor.hidden.some(Boolean) ? editor.hidden : null;
  return {
    image: editor.toUrl(),
    num_given: Number($("given").value) * editor.width,
    hidden,
    completions: completions ?? $("completions").valueAsNumber,
    seed: $("seed").valueAsNumber,
    temperature: $("temperature").valueAsNumber,
    top_k: $("top_k").valueAsNumber,
    top_p: $("top_p").valueAsNumber,
  };
}

function complete(completions) {
  return run("Completing", async (stopClock) => {
    const asked = completionRequest(completions);
    const answer = await request("/complete", JSON.stringify(asked));
    stopClock();
    const duration = `Completed in ${answer.seconds} s`;
    if (!isMasked()) $("status").textContent = `${duration}; replayed row by row.`;
    await showCompletions(answer.images, asked);
    return `${duration}.`;
  });
}

// The answer comes at once. Autoregressive models generate in raster order, which is replayed;
// masked models fill in pixels all over the image.
async function showCompletions(urls, asked) {
  const images = await Promise.all(urls.map(loadImage));
  const givenRows = asked.num_given / editor.width;
  const barRows = asked.hidden ? 0 : givenRows;
  const figures = images.map((image, i) => completionFigure(asked.seed + i, image, barRows));
  results = images.map((image, i) => ({ seed: asked.seed + i, image }));
  $("pictures").replaceChildren(...figures.map(({ figure }) => figure));
  $("completed").hidden = false;
  $("empty").hidden = true;
  $("legend").hidden = barRows === 0;
  reveal($("completed"));
  const isCalm = isMasked() || matchMedia("(prefers-reduced-motion: reduce)").matches;
  const pause = isCalm ? 0 : REPLAY_MILLISECONDS / Math.max(editor.height - givenRows, 1);
  for (let row = 0; row < editor.height; row++) {
    figures.forEach(({ context }, i) =>
      context.drawImage(images[i], 0, row, editor.width, 1, 0, row, editor.width, 1));
    if (row >= givenRows && pause) await new Promise((done) => setTimeout(done, pause));
  }
}

// A picture, its given rows marked, with its seed and buttons to continue from it and to save it.
function completionFigure(seed, image, givenRows) {
  const figure = document.createElement("figure");
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [editor.width, editor.height];
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `Completion with seed ${seed}`);
  const picture = document.createElement("div");
  picture.className = "picture";
  picture.style.setProperty("--given", givenRows / editor.height);
  picture.append(canvas);
  const caption = document.createElement("figcaption");
  const name = document.createElement("span");
  name.textContent = `seed ${seed}`;
  caption.append(
    name,
    captionButton("Use", `Use the completion with seed ${seed} as the image`, () => editor.show(image.src)),
    captionButton("Save", `Save the completion with seed ${seed}`, () =>
      save([image], 1, `igpt_seed_${seed}.png`)));
  figure.append(picture, caption);
  return { figure, context: canvas.getContext("2d") };
}

function captionButton(text, label, onClick) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = text;
  button.setAttribute("aria-label", label);
  button.addEventListener("click", onClick);
  return button;
}

// Saves images in one PNG, each pixel enlarged to a square.
function save(images, columns, name) {
  const { height, width } = editor;
  const scale = Math.max(1, Math.round(SAVED_SIDE / Math.max(height, width)));
  const gap = images.length > 1 ? 8 : 0;
  const canvas = document.createElement("canvas");
  canvas.width = columns * (width * scale + gap) + gap;
  canvas.height = Math.ceil(images.length / columns) * (height * scale + gap) + gap;
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.fillStyle = "#ffffff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  images.forEach((image, i) => {
    const [column, row] = [i % columns, Math.floor(i / columns)];
    context.drawImage(image, gap + column * (width * scale + gap),
      gap + row * (height * scale + gap), width * scale, height * scale);
  });
  const link = document.createElement("a");
  link.href = canvas.toDataURL("image/png");
  link.download = name;
  link.click();
}

function saveAll() {
  const seeds = results.map(({ seed }) => seed);
  const columns = Math.ceil(Math.sqrt(results.length));
  save(results.map(({ image }) => image), columns, `igpt_seeds_${seeds[0]}_to_${seeds.at(-1)}.png`);
}

function score() {
  return run("Scoring", async () => {
    const answer = await request("/score", JSON.stringify({ image: editor.toUrl() }));
    drawSurprise(answer.surprise);
    const kind = isMasked() ? "; each pixel from the others (pseudo-likelihood)" : "";
    $("surprise-text").textContent = `Surprise: ${answer.nats_per_token.toFixed(3)} nats per pixel${kind}`;
    show($("surprise"));
    return "Scored: the model did not expect the bright pixels.";
  });
}

// Shows an answer about the current image; `markStale` dims it once the image changes.
function show(figure) {
  figure.hidden = false;
  figure.classList.remove("stale");
  $("empty").hidden = true;
  reveal(figure);
}

function reveal(element) {
  if (document.body.dataset.started) element.scrollIntoView({ block: "nearest" });
}

function markStale() {
  numChanges++;
  for (const id of ["surprise", "classes"]) $(id).classList.add("stale");
}

function drawSurprise(rows) {
  const map = $("map");
  [map.width, map.height] = [editor.width, editor.height];
  const most = Math.max(...rows.flat(), 1e-9);
  const context = map.getContext("2d");
  const pixels = context.createImageData(editor.width, editor.height);
  rows.flat().forEach((nats, i) => pixels.data.set([...mapColour(nats / most), 255], 4 * i));
  context.putImageData(pixels, 0, 0);
  $("scale-text").textContent = `${most.toFixed(2)} nats`;
  map.onpointermove = map.onpointerdown = (event) => {
    const row = Math.min(Math.floor((event.offsetY / map.clientHeight) * editor.height), editor.height - 1);
    const column = Math.min(Math.floor((event.offsetX / map.clientWidth) * editor.width), editor.width - 1);
    const nats = rows[Math.max(row, 0)][Math.max(column, 0)];
    $("pixel-text").textContent = `Row ${row + 1}, column ${column + 1}: ${nats.toFixed(2)} nats`;
  };
}

function mapColour(share) {
  const place = Math.min(Math.max(share, 0), 1) * (COLOUR_MAP.length - 1);
  const low = Math.min(Math.floor(place), COLOUR_MAP.length - 2);
  return COLOUR_MAP[low].map((start, i) => start + (place - low) * (COLOUR_MAP[low + 1][i] - start));
}

function classify() {
  return run("Classifying", async () => {
    const answer = await request("/classify", JSON.stringify({ image: editor.toUrl() }));
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
  run("Reading the file", async () => {
    $("file").value = "";
    if (file.size > about.max_file_bytes) {
      throw new Error(`an image file must have at most ${about.max_file_bytes} bytes. Received: file=${file.name}`);
    }
    const path = `/shrink?name=${encodeURIComponent(file.name)}`;
    const answer = await request(path, file, "application/octet-stream");
    await editor.show(answer.image);
    return `${file.name}, ${editor.width}×${editor.height} pixels in the palette's colours.`;
  });
}

function showHeldOut(index) {
  return run("Loading", async () => {
    const count = Math.max(heldout.count, 1);
    heldout = await request(`/heldout?index=${(index + count) % count}`);
    await editor.show(heldout.image);
    return heldOutName();
  });
}

function heldOutName() {
  const name = heldout.class_name === null ? "" : `, class ${heldout.class_name}`;
  return `Held-out image ${heldout.index + 1} of ${heldout.count}${name}.`;
}

// Starts with a held-out image and one completion of it, if the model's data set is here. Reading
// a large data set takes a while; what the user does in the meantime is kept.
async function startWithHeldOut() {
  const before = numChanges;
  $("status").textContent = "Reading the model's data set for a held-out image …";
  try {
    heldout = await request("/heldout?index=0");
  } catch {
    $("status").textContent = "The model's data set is not on this machine: upload an image, or draw one.";
    return;
  }
  $("heldout").hidden = false;
  if (numChanges !== before) return;
  await editor.show(heldout.image);
  if (has("complete")) await complete(1);
  if (!$("error").textContent) $("status").textContent = heldOutName();
}

function describe() {
  const [height, width] = about.image_size;
  const parts = [isMasked() ? "masked (BERT) model" : "autoregressive model", `${width}×${height} pixels`];
  if (about.step !== null) parts.push(`step ${about.step}`);
  if (about.nats_per_token !== null) {
    const unit = isMasked() ? "nats per masked token" : "nats per token";
    parts.push(`held-out loss ${about.nats_per_token.toFixed(3)} ${unit}`);
  }
  $("about").textContent = [...parts, about.location].join(" · ");
  $("hint").textContent = !has("complete") ? "This model does not generate images."
    : isMasked() ? "Given are the pixels above the line, except those hidden with the brush. The " +
      "model fills in the others, the most certain ones first."
    : "Given are the pixels above the line. The model generates the others in raster order.";
}

function configure() {
  describe();
  $("tools").hidden = !isMasked();
  $("colour-label").hidden = about.is_grey;
  $("grey-label").hidden = !about.is_grey;
  $("complete").disabled = $("again").disabled = !has("complete");
  $("score").hidden = !has("score");
  $("classify").hidden = !has("classify");
  $("completions").max = about.max_completions;
  if (about.vocabulary_size) $("top_k").max = about.vocabulary_size;
}

function showValue(id, format) {
  const update = () => ($(`${id}-value`).textContent = format($(id).valueAsNumber));
  $(id).addEventListener("input", update);
  update();
}

function setGiven(rows) {
  editor.given = rows;
  editor.drawOverlay();
  return `${rows} of ${editor.height}`;
}

function listen() {
  showValue("given", setGiven);
  showValue("temperature", (value) => value.toFixed(2));
  showValue("top_p", (value) => value.toFixed(2));
  $("file").addEventListener("change", () => upload($("file").files[0]));
  $("canvas").addEventListener("dragover", (event) => event.preventDefault());
  $("canvas").addEventListener("drop", (event) => {
    event.preventDefault();
    upload(event.dataTransfer.files[0]);
  });
  $("clear").addEventListener("click", () => editor.clear());
  $("colour").addEventListener("input", (event) => (editor.colour = event.target.value));
  $("grey").addEventListener("input", (event) => {
    const level = Number(event.target.value).toString(16).padStart(2, "0");
    editor.colour = `#${level.repeat(3)}`;
  });
  $("tools").addEventListener("change", (event) => (editor.tool = event.target.value));
  $("previous").addEventListener("click", () => showHeldOut(heldout.index - 1));
  $("try").addEventListener("click", () => showHeldOut(heldout.index));
  $("next").addEventListener("click", () => showHeldOut(heldout.index + 1));
  $("random").addEventListener("click", () => showHeldOut(Math.floor(Math.random() * heldout.count)));
  $("complete").addEventListener("click", () => complete());
  $("again").addEventListener("click", () => {
    $("seed").value = Math.floor(Math.random() * 1e6);
    complete();
  });
  $("save-all").addEventListener("click", saveAll);
  $("score").addEventListener("click", score);
  $("classify").addEventListener("click", classify);
}

async function start() {
  about = await request("/about");
  const [height, width] = about.image_size;
  editor = new ImageEditor($("canvas"), $("overlay"), height, width, markStale);
  configure();
  $("given").max = height;
  $("given").value = Math.ceil(height / 2);
  listen();
  document.body.dataset.ready = "yes";
  if (about.names_its_data) await startWithHeldOut();
  document.body.dataset.started = "yes";
}

start().catch((error) => showError(error.message));
