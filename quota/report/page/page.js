"use strict";
// One slider for all pictures: shows, over each, the veil of the last cut before the layer that it stands at.
const slider = document.getElementById("layer");
if (slider) {
  const first = Number(slider.min);
  const told = document.getElementById("layer-told");
  const show = () => {
    const layer = Number(slider.value);
    const name = layer < 0 ? "before the decoder" : `entering layer ${layer}`;
    told.textContent = name;
    slider.setAttribute("aria-valuetext", name);
    for (const frame of document.querySelectorAll("[data-frame]")) {
      let last = null;
      for (const veil of frame.querySelectorAll("[data-first]")) {
        veil.classList.add("off");
        if (Number(veil.dataset.first) <= layer) last = veil;
      }
      if (last) last.classList.remove("off");
      const kept = last ? last.dataset.kept : frame.dataset.frame;
      frame.querySelector("[data-count]").textContent = `${kept} of ${frame.dataset.frame} tokens`;
    }
    for (const line of document.querySelectorAll("[data-tokens]")) {
      const tokens = line.dataset.tokens.split(" ");
      line.textContent = `In all ${tokens[layer - first]} of ${tokens[0]} visual tokens`;
    }
  };
  slider.disabled = false;
  slider.addEventListener("input", show);
  show();
}
