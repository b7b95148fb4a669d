// A picture that is pasted anywhere on the page is chosen, also where browsers hide the clipboard (plain http).
document.addEventListener("paste", (event) => {
  const picture = [...(event.clipboardData?.files ?? [])].find((file) => file.type.startsWith("image/"));
  const place = document.querySelector("#quota-picture");
  if (!picture || !place) return;
  event.preventDefault();
  const choose = () => {
    const input = place.querySelector("input[type=file]");
    if (!input) return false;
    const files = new DataTransfer();
    files.items.add(picture);
    input.files = files.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
    return true;
  };
  if (choose()) return;
  // There is one already: away with it, and wait for the place to be empty.
  place.querySelector("button[aria-label=Clear]")?.click();
  const waiting = new MutationObserver(() => choose() && waiting.disconnect());
  waiting.observe(place, { childList: true, subtree: true });
});

// Screen readers hear what changes.
const spoken = new MutationObserver(() => {
  const places = ["quota-message", "quota-answer-card"].map((name) => document.getElementById(name));
  if (places.includes(null)) return;
  places.forEach((place) => place.setAttribute("aria-live", "polite"));
  spoken.disconnect();
});
spoken.observe(document, { childList: true, subtree: true });
