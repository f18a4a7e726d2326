// What every page does: a link that is shown once is selected, ready to be copied.

document.querySelector("#link")?.select();
