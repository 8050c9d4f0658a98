// Click a column's heading to sort by it; click again to turn the order around.
for (const button of document.querySelectorAll("table.sortable thead button")) {
  button.addEventListener("click", () => {
    const heading = button.closest("th");
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
  });
}
