// Small conveniences of the dashboard. Everything here also works without it, by mouse.
(function () {
  "use strict";

  // Set the colour scheme before anything is drawn, so that a dark page does not flash white.
  var stored = null;
  try {
    stored = window.localStorage.getItem("mantine-color-scheme-value");
  } catch (error) {
    stored = null; // storage is switched off: follow the system
  }
  var dark = stored === "dark" || (stored !== "light" && window.matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.setAttribute("data-mantine-color-scheme", dark ? "dark" : "light");
  function scheme() {
    return document.documentElement.getAttribute("data-mantine-color-scheme");
  }

  // `/` goes to the prompt; Ctrl+Enter (or Cmd+Enter) in a prompt runs it.
  document.addEventListener("keydown", function (event) {
    var target = event.target;
    var typing = target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName);
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      var prompt = document.querySelector("textarea.prompt-first, .prompt-first textarea");
      if (prompt) {
        event.preventDefault();
        prompt.focus();
      }
    }
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && typing) {
      var button = document.querySelector(".run-button");
      if (button) {
        event.preventDefault();
        button.click();
      }
    }
  });

  // What the server is told: the page, its query and the colour scheme; and the name of the browser's tab.
  var names = { "/": "Start", "/lens": "Prompt & Lens", "/patch": "Patch", "/probes": "Probes", "/steer": "Steer", "/runs": "Runs" };
  window.dash_clientside = window.dash_clientside || {};
  window.dash_clientside.workbench = {
    route: function (pathname) {
      var path = pathname || "/";
      var name = names[path] || (path.indexOf("/runs/") === 0 ? "Run " + path.slice(6) : "Not found");
      document.title = name + " · Latent Workbench";
      return { path: path, scheme: scheme() };
    },
    // The query of the address, for the page it belongs to: on the way to another page the old one is still there.
    tell_page: function (search, pathname, pages) {
      return pages.map(function (id) {
        var mine = pathname === "/" + id.page;
        return mine ? { search: search || "", scheme: scheme() } : window.dash_clientside.no_update;
      });
    },
  };

  // Title of a run in the table: a link, so that it can be opened by keyboard or in a new tab.
  var cells = (window.dashAgGridComponentFunctions = window.dashAgGridComponentFunctions || {});
  cells.RunLink = function (props) {
    var href = "/runs/" + encodeURIComponent(props.data.id);
    function open(event) {
      if (event.button !== 0 || event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      window.history.pushState({}, "", href);
      window.dispatchEvent(new CustomEvent("_dashprivate_pushstate")); // as dcc.Link does
      window.scrollTo(0, 0);
    }
    return React.createElement("a", { href: href, className: "run-link", tabIndex: -1, onClick: open }, props.value);
  };
  document.addEventListener("keydown", function (event) {
    var cell = document.activeElement;
    if (event.key !== "Enter" || !cell || !cell.classList.contains("ag-cell")) return;
    var link = cell.parentElement.querySelector(".run-link");
    if (link) link.click();
  });
})();
