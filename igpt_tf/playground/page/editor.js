// The image editor: one canvas pixel per pixel of the model, and an overlay over what is not given.
"use strict";

class ImageEditor {
  constructor(canvas, overlay, height, width, onChange) {
    Object.assign(this, { canvas, overlay, height, width, onChange });
    [canvas.width, canvas.height] = [width, height];
    // The overlay has a finer grid, so that its lines stay thin.
    this.scale = Math.max(1, Math.round(300 / width));
    [overlay.width, overlay.height] = [width * this.scale, height * this.scale];
    this.context = canvas.getContext("2d", { willReadFrequently: true });
    this.hidden = new Array(height * width).fill(0);
    this.cursor = { x: Math.floor(width / 2), y: Math.floor(height / 2), shown: false };
    this.given = height;
    this.colour = "#ffffff";
    this.tool = "draw";
    this.clear();
    this.listen();
  }

  clear() {
    this.context.fillStyle = "#000000";
    this.context.fillRect(0, 0, this.width, this.height);
    this.hidden.fill(0);
    this.drawOverlay();
    this.onChange();
  }

  async show(url) {
    this.context.drawImage(await loadImage(url), 0, 0);
    this.hidden.fill(0);
    this.drawOverlay();
    this.onChange();
  }

  toUrl() {
    return this.canvas.toDataURL("image/png");
  }

  // Whether the model keeps the pixel at this raster position.
  isKnown(position) {
    return position < this.given * this.width && !this.hidden[position];
  }

  // Dims the pixels that are generated; draws the line below the given rows and the keyboard's cursor.
  drawOverlay() {
    const { scale, width, height } = this;
    const context = this.overlay.getContext("2d");
    context.clearRect(0, 0, width * scale, height * scale);
    context.fillStyle = "rgba(128, 132, 145, 0.72)";
    for (let position = 0; position < width * height; position++) {
      if (this.isKnown(position)) continue;
      const [x, y] = [position % width, Math.floor(position / width)];
      context.fillRect(x * scale, y * scale, scale, scale);
    }
    context.fillStyle = "#2f6bff";
    if (this.given < height) context.fillRect(0, this.given * scale - 1, width * scale, 2);
    if (this.cursor.shown) {
      context.strokeStyle = "#ff3d7f";
      context.lineWidth = 2;
      context.strokeRect(this.cursor.x * scale + 1, this.cursor.y * scale + 1, scale - 2, scale - 2);
    }
  }

  usePixel(x, y) {
    if (x < 0 || y < 0 || x >= this.width || y >= this.height) return;
    if (this.tool === "draw") {
      this.context.fillStyle = this.colour;
      this.context.fillRect(x, y, 1, 1);
    } else {
      this.hidden[y * this.width + x] = this.tool === "hide" ? 1 : 0;
    }
    this.drawOverlay();
  }

  // Covers all pixels between two pointer events, so that fast strokes have no gaps.
  stroke(from, to) {
    const steps = Math.max(Math.abs(to.x - from.x), Math.abs(to.y - from.y), 1);
    for (let step = 0; step <= steps; step++) {
      const part = step / steps;
      this.usePixel(
        Math.round(from.x + part * (to.x - from.x)), Math.round(from.y + part * (to.y - from.y)));
    }
  }

  pixelAt(event) {
    const box = this.canvas.getBoundingClientRect();
    return {
      x: Math.floor(((event.clientX - box.left) / box.width) * this.width),
      y: Math.floor(((event.clientY - box.top) / box.height) * this.height),
    };
  }

  listen() {
    let last = null;
    this.canvas.addEventListener("pointerdown", (event) => {
      this.canvas.setPointerCapture(event.pointerId);
      this.cursor.shown = false;
      last = this.pixelAt(event);
      this.stroke(last, last);
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (!last) return;
      const next = this.pixelAt(event);
      this.stroke(last, next);
      last = next;
    });
    for (const end of ["pointerup", "pointercancel"]) {
      this.canvas.addEventListener(end, () => {
        if (last) this.onChange();
        last = null;
      });
    }
    this.canvas.addEventListener("keydown", (event) => this.useKey(event));
    this.canvas.addEventListener("blur", () => {
      this.cursor.shown = false;
      this.drawOverlay();
    });
  }

  useKey(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const { cursor, width, height } = this;
    if (event.key in moves) {
      const [dx, dy] = moves[event.key];
      cursor.x = Math.min(Math.max(cursor.x + dx, 0), width - 1);
      cursor.y = Math.min(Math.max(cursor.y + dy, 0), height - 1);
    } else if (event.key === " ") {
      this.usePixel(cursor.x, cursor.y);
      this.onChange();
    } else {
      return;
    }
    cursor.shown = true;
    event.preventDefault();
    this.drawOverlay();
  }
}

async function loadImage(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  return image;
}
