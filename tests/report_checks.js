// Checks of a report's page, run in it by test_report_browser.py: each gives what it finds wrong.
const checks = {
  // A click sorts up, a second one down; what is empty stays at the end.
  sorting() {
    const wrong = [];
    for (const table of document.querySelectorAll("table")) {
      for (const [column, button] of table.querySelectorAll("th button").entries()) {
        for (const sign of [1, -1]) {
          button.click();
          const texts = [...table.tBodies[0].rows].map(row => row.cells[column].dataset.value.replace("SIMULATED ", ""));
          const filled = texts.filter(text => text !== ""), numbers = filled.map(Number);
          const pairs = numbers.some(isNaN) ? [] : numbers.slice(1).map((number, place) => sign * (number - numbers[place]));
          const empty_last = texts.slice(filled.length).every(text => text === "");
          if (pairs.some(step => step < 0) || !empty_last) wrong.push(`${table.id}, column ${column}, ${sign}`);
          const state = button.parentNode.getAttribute("aria-sort");
          if (state !== (sign > 0 ? "ascending" : "descending")) wrong.push(`${table.id}: aria-sort is ${state}`);
        }
      }
    }
    return wrong;
  },
  // Every plot has a size, and lines, bars or marks within it.
  plots() {
    for (const details of document.querySelectorAll("details")) details.open = true;
    const wrong = [];
    for (const svg of document.querySelectorAll("figure svg")) {
      const whole = svg.getBoundingClientRect(), name = svg.getAttribute("aria-label");
      const drawn = [...svg.querySelectorAll("g[id*=axes] > g > path, g[id*=axes] use")].filter(mark => {
        const box = mark.getBoundingClientRect();
        return box.width + box.height > 0;
      });
      if (whole.width < 200 || whole.height < 100 || drawn.length < 5) wrong.push(`${name}: ${drawn.length} marks`);
      for (const text of svg.querySelectorAll("text")) {
        const box = text.getBoundingClientRect();
        const out = Math.max(whole.left - box.left, box.right - whole.right, whole.top - box.top, box.bottom - whole.bottom);
        if (out > 2) wrong.push(`${name}: ${text.textContent.trim()} is cut by ${out.toFixed()} px`);
        if (/\$|mathdefault/.test(text.textContent)) wrong.push(`${name}: ${text.textContent.trim()}`);
      }
    }
    return document.querySelector("figure svg") ? wrong : ["no plot"];
  },
  // A saved plot is well-formed, and knows its colours without the page.
  async saving() {
    const saved = [];
    URL.createObjectURL = blob => (saved.push(blob), "#");
    const click = HTMLAnchorElement.prototype.click;
    HTMLAnchorElement.prototype.click = () => {};
    for (const button of document.querySelectorAll("figure .save")) button.click();
    HTMLAnchorElement.prototype.click = click;
    const texts = await Promise.all(saved.map(blob => blob.text()));
    const bad = texts.filter(text => /var\(/.test(text)
      || new DOMParser().parseFromString(text, "image/svg+xml").documentElement.tagName !== "svg");
    return texts.length === document.querySelectorAll("figure").length ? bad : [`${texts.length} files`];
  },
  // What is wider than the screen scrolls by itself.
  width() {
    const page = document.documentElement;
    return page.scrollWidth > page.clientWidth ? [`${page.scrollWidth} px on ${page.clientWidth}`] : [];
  },
  // WCAG AA of every text on what lies behind it.
  contrast() {
    const numbers = colour => colour.match(/[\d.]+/g).map(Number);
    const luminance = ([red, green, blue]) => {
      const linear = part => part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4;
      return 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue);
    };
    const behind = element => {
      for (let at = element; at; at = at.parentElement) {
        const colour = numbers(getComputedStyle(at).backgroundColor);
        if (colour.length === 3 || colour[3] > 0) return colour;
      }
      return [255, 255, 255];
    };
    const wrong = new Set();
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
      const element = node.parentElement;
      if (!node.textContent.trim() || ["SCRIPT", "STYLE"].includes(element.tagName.toUpperCase())) continue;
      const style = getComputedStyle(element);
      const text = luminance(numbers(element.closest("svg") ? style.fill : style.color)), paper = luminance(behind(element));
      const ratio = (Math.max(text, paper) + 0.05) / (Math.min(text, paper) + 0.05);
      if (ratio < 4.5) wrong.add(`${element.tagName} ${node.textContent.trim().slice(0, 30)}: ${ratio.toFixed(2)}`);
    }
    return [...wrong];
  },
  requests() {
    return performance.getEntriesByType("resource").map(entry => entry.name);
  },
};
addEventListener("load", async () => {
  const found = {};
  for (const [name, check] of Object.entries(checks)) found[name] = await check();
  found.errors = errors;
  found.dark = matchMedia("(prefers-color-scheme: dark)").matches;
  found.paper = getComputedStyle(document.body).backgroundColor;
  found.width_px = innerWidth;
  parent.postMessage(found, "*");
});
