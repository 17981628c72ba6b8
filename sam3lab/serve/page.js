// What Gradio's image input lacks: an image pasted or dropped anywhere on the page, also where one is shown already, and
// a file of the wrong kind or size refused in place, in words, before it is sent.
() => {
  const types = ["image/jpeg", "image/png", "image/webp"];
  const largest = LARGEST;
  const field = () => document.querySelector("#image input[type=file]");

  const say = (text) => {
    const place = document.getElementById("refusal");
    if (!place) return;
    place.textContent = text;
    place.hidden = !text;
    if (text) place.scrollIntoView({ block: "nearest" });
  };

  const refusal = (file) => {
    if (!types.includes(file.type)) return `“${file.name.slice(0, 80)}” is no JPEG, PNG or WebP image; choose another file.`;
    if (file.size > largest) {
      return `The image has ${(file.size / 1e6).toFixed(1)} MB; send at most ${(largest / 1e6).toFixed(0)} MB.`;
    }
    return "";
  };

  const give = (file) => {
    const text = refusal(file);
    say(text);
    if (text) return;
    const input = field();
    if (!input) return;
    const one = new DataTransfer();
    one.items.add(file);
    input.files = one.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  };

  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])][0];
    if (file) {
      event.preventDefault();
      give(file);
    }
  });
  const carries = (event) => event.dataTransfer?.types.includes("Files") || event.dataTransfer?.files.length;
  document.addEventListener("dragover", (event) => carries(event) && event.preventDefault());
  document.addEventListener(
    "drop",
    (event) => {
      if (!carries(event)) return;
      event.preventDefault();
      event.stopImmediatePropagation();
      if (event.dataTransfer.files.length) give(event.dataTransfer.files[0]);
    },
    true,
  );
  document.addEventListener(
    "change",
    (event) => {
      if (event.target !== field() || !event.target.files.length) return;
      const text = refusal(event.target.files[0]);
      say(text);
      if (text) {
        event.stopImmediatePropagation();
        event.target.value = "";
      }
    },
    true,
  );
  // On a phone the answer is below what asks for it; and what went wrong shall be seen wherever one is on the page.
  const narrow = matchMedia("(max-width: 640px)");
  const follow = () => narrow.matches && document.getElementById("result")?.scrollIntoView({ behavior: "smooth" });
  let seen = null;
  new MutationObserver(() => {
    const latest = document.querySelector("#notice .notice");
    if (latest && latest !== seen) latest.scrollIntoView({ block: "nearest" });
    seen = latest;
  }).observe(document.body, { childList: true, subtree: true });

  // The next thing that is done makes an old refusal go.
  document.addEventListener(
    "click",
    (event) => {
      if (!event.target.closest("#run, #examples button")) return;
      say("");
      follow();
    },
    true,
  );
}
