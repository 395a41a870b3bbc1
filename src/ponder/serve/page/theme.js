// Before the first paint, so that a page in the chosen colours never flashes in the others.
try {
  const theme = localStorage.getItem("ponder-theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch {
  // no storage: the system's colours
}
