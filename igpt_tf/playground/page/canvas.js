// The easel: one canvas pixel for each pixel of the model, and a veil over what is not given.
"use strict";

class Easel {
  constructor(canvas, veil, height, width, onChange) {
    Object.assign(this, { canvas, veil, height, width, onChange });
    [canvas.width, canvas.height] = [width, height];
    // The veil is finer, so that its line and its hatching stay thin.
    this.fine = Math.max(1, Math.round(300 / width));
    [veil.width, veil.height] = [width * this.fine, height * this.fine];
    this.pen = canvas.getContext("2d", { willReadFrequently: true });
    this.hidden = new Array(height * width).fill(0);
    this.cursor = { x: Math.floor(width / 2), y: Math.floor(height / 2), shown: false };
    this.given = height;
    this.colour = "#ffffff";
    this.brush = "draw";
    this.clear();
    this.listen();
  }

  clear() {
    this.pen.fillStyle = "#000000";
    this.pen.fillRect(0, 0, this.width, this.height);
    this.hidden.fill(0);
    this.cover();
    this.onChange();
  }

  async show(url) {
    this.pen.drawImage(await loaded(url), 0, 0);
    this.cover();
    this.onChange();
  }

  url() {
    return this.canvas.toDataURL("image/png");
  }

  // Dims the rows that are not given and the pixels that are hidden; draws the keyboard's cursor.
  cover() {
    const { fine, width, height } = this;
    const brush = this.veil.getContext("2d");
    brush.clearRect(0, 0, width * fine, height * fine);
    brush.fillStyle = "rgba(128, 132, 145, 0.72)";
    brush.fillRect(0, this.given * fine, width * fine, height * fine);
    this.hidden.forEach((is, place) => {
      if (is && place < this.given * width) {
        brush.fillRect((place % width) * fine, Math.floor(place / width) * fine, fine, fine);
      }
    });
    brush.fillStyle = "#2f6bff";
    if (this.given < height) brush.fillRect(0, this.given * fine - 1, width * fine, 2);
    if (this.cursor.shown) {
      brush.strokeStyle = "#ff3d7f";
      brush.lineWidth = 2;
      brush.strokeRect(this.cursor.x * fine + 1, this.cursor.y * fine + 1, fine - 2, fine - 2);
    }
  }

  touch(x, y) {
    if (x < 0 || y < 0 || x >= this.width || y >= this.height) return;
    if (this.brush === "draw") {
      this.pen.fillStyle = this.colour;
      this.pen.fillRect(x, y, 1, 1);
    } else {
      this.hidden[y * this.width + x] = this.brush === "hide" ? 1 : 0;
    }
    this.cover();
  }

  // All pixels between two events: a fast stroke leaves no gaps.
  stroke(from, to) {
    const steps = Math.max(Math.abs(to.x - from.x), Math.abs(to.y - from.y), 1);
    for (let step = 0; step <= steps; step++) {
      const part = step / steps;
      this.touch(
        Math.round(from.x + part * (to.x - from.x)), Math.round(from.y + part * (to.y - from.y)));
    }
  }

  at(event) {
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
      last = this.at(event);
      this.stroke(last, last);
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (!last) return;
      const next = this.at(event);
      this.stroke(last, next);
      last = next;
    });
    for (const end of ["pointerup", "pointercancel"]) {
      this.canvas.addEventListener(end, () => {
        if (last) this.onChange();
        last = null;
      });
    }
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("blur", () => {
      this.cursor.shown = false;
      this.cover();
    });
  }

  key(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const { cursor, width, height } = this;
    if (event.key in moves) {
      const [dx, dy] = moves[event.key];
      cursor.x = Math.min(Math.max(cursor.x + dx, 0), width - 1);
      cursor.y = Math.min(Math.max(cursor.y + dy, 0), height - 1);
    } else if (event.key === " ") {
      this.touch(cursor.x, cursor.y);
      this.onChange();
    } else {
      return;
    }
    cursor.shown = true;
    event.preventDefault();
    this.cover();
  }
}

async function loaded(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  return image;
}
