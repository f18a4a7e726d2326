// A project's page while a job runs for it: what is said of the job, and the counts, are kept up to date.

const EVERY = 1500;

async function look() {
  try {
    const page = new DOMParser().parseFromString(await (await fetch(location.pathname)).text(), "text/html");
    for (const part of document.querySelectorAll("[data-live]")) {
      const now = page.querySelector(`[data-live=${part.dataset.live}]`);
      if (now) part.replaceWith(now);
    }
  } catch {
    // The server is away for a while.
  }
  follow();
}

function follow() {
  if (document.querySelector(".notice.running")) setTimeout(look, EVERY);
}

follow();
