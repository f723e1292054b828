// A figure opens in its full size: four panels are small on a phone.
document.addEventListener("DOMContentLoaded", () => {
  for (const picture of document.querySelectorAll(".cell_output img")) {
    const link = document.createElement("a");
    link.href = picture.src;
    link.title = "Open in full size";
    picture.replaceWith(link);
    link.append(picture);
  }
});
