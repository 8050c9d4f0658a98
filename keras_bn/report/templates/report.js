"use strict";

// Without this script headings are text. With it they are buttons: press one to sort by its column,
// and again to turn the order around.
for (const heading of document.querySelectorAll("table.sortable thead th")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...heading.childNodes);
  button.addEventListener("click", () => sort(heading));
  heading.append(button);
}

function sort(heading) {
  const table = heading.closest("table");
  const body = table.tBodies[0];
  const descending = heading.getAttribute("aria-sort") === "ascending";
  for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", descending ? "descending" : "ascending");

  const column = heading.cellIndex;
  const figures = heading.classList.contains("figure");
  const key = (row) => {
    const cell = row.cells[column];
    if (!figures) return cell.textContent;
    return "value" in cell.dataset ? Number(cell.dataset.value) : null;
  };
  const missing = (value) => value === null || Number.isNaN(value);
  const order = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (missing(x) || missing(y)) return missing(x) - missing(y); // a missing figure comes last
    const ascending = figures
      ? (x > y) - (x < y)
      : x.localeCompare(y, undefined, { numeric: true });
    return descending ? -ascending : ascending;
  };
  body.append(...[...body.rows].sort(order));
}

// What is folded up on a screen is unfolded on paper.
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details:not([open])")) {
    details.open = true;
    addEventListener("afterprint", () => { details.open = false; }, { once: true });
  }
});
