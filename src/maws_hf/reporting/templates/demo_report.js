// Charts tell their points, tables sort by a column. The page is whole without either.
document.querySelectorAll("[data-plot]").forEach((plot) => {
  const strips = [...plot.querySelectorAll("rect")];
  const texts = strips.map((strip) => strip.textContent);
  strips.forEach((strip) => strip.replaceChildren()); // else the browser shows its own tooltip as well
  const dot = document.createElement("i");
  const tip = document.createElement("output");
  dot.className = "dot";
  tip.className = "tip";
  tip.hidden = dot.hidden = true;
  plot.append(dot, tip);
  let at = strips.length - 1;
  const show = (index) => {
    at = Math.max(0, Math.min(strips.length - 1, index));
    const { x, y } = strips[at].dataset;
    dot.style.left = tip.style.left = `${x}%`;
    dot.style.top = tip.style.top = `${y}%`;
    tip.style.translate = `${-x}% calc(-100% - 12px)`;
    tip.textContent = texts[at];
    tip.hidden = dot.hidden = false;
  };
  const hide = () => (tip.hidden = dot.hidden = true);
  plot.tabIndex = 0;
  plot.setAttribute("role", "group");
  plot.setAttribute("aria-label", "Chart; arrow keys go through its points");
  plot.addEventListener("pointermove", (event) => {
    const index = strips.indexOf(event.target);
    if (index >= 0) show(index);
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("focus", () => plot.matches(":focus-visible") && show(at));
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: strips.length - 1 };
    if (event.key === "Escape") hide();
    if (!(event.key in moves)) return;
    event.preventDefault();
    show(moves[event.key]);
  });
});

document.querySelectorAll("table[data-sort]").forEach((table) => {
  const body = table.tBodies[0];
  const value = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.value ?? cell.textContent.trim();
    const number = Number(text.replaceAll(",", ""));
    return Number.isNaN(number) ? text : number;
  };
  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const first = head.classList.contains("number") ? "descending" : "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      [...table.tHead.rows[0].cells].forEach((cell) => cell.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...body.rows].sort((a, b) => sign * compare(value(a, column), value(b, column)));
      body.append(...rows);
    });
  });
});
