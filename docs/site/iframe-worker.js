// The search runs in a worker, which browsers refuse to pages that are opened from a disk. There a frame takes its place.
// (Material would fetch a script for this from the network.)
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.srcdoc = "<body></body>";
      const load = (address) =>
        new Promise((loaded, failed) => {
          const script = frame.contentDocument.createElement("script");
          Object.assign(script, { src: address, onload: loaded, onerror: failed });
          frame.contentDocument.body.append(script);
        });
      this.inside = new Promise((there) => (frame.onload = there)).then(async () => {
        const inside = frame.contentWindow;
        inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
        inside.importScripts = async (...addresses) => {
          for (const address of addresses) await load(address);
        };
        await load(url);
        return inside;
      });
      this.frame = frame;
      document.body.append(frame);
    }

    postMessage(data) {
      this.inside.then((inside) => inside.dispatchEvent(new MessageEvent("message", { data })));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
