"""Run folders with a queue of small pictures, and a server of the page to label on."""

import threading
import time
from contextlib import contextmanager

import uvicorn
from PIL import Image

from lightning_al import Labels
from lightning_al.labeling.app import make_app
from lightning_al.labeling.content import read_path
from lightning_al.labeling.session import LabelingSession
from lightning_al.storage.queue_file import Queue, QueuedSample, TopClass, write_queue
from tests.image_files import pixels

CLASSES = ["cat", "dog", "cow"]
TOKEN = "secret"


def written_queue(run, size=4, classes=CLASSES, kind="class", cycle=0):
    """Write pictures named by their true class, and a queue that asks about them; predictions are off by one class."""
    samples = []
    for number, picture in enumerate(pixels(size, 9, 12, 3)):
        path = run / "photos" / f"{number}-{classes[number % len(classes)] if classes else number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
        near = [position % len(classes) for position in (number + 1, number)] if classes else []
        tops = [TopClass(label, probability) for label, probability in zip(near, (0.5, 0.3), strict=False)]
        samples.append(QueuedSample(10 + number, str(path), tops[0].label if tops else None, tops, float(-number)))
    queue = Queue(cycle, kind=kind, classes=classes, samples=samples)
    write_queue(run, queue)
    return queue


def session_of(run, suggest=False, **options):
    queue = written_queue(run, **options)
    return LabelingSession(queue, Labels(run / queue.labels, queue.classes or None), suggest)


@contextmanager
def running(session, read=read_path, port=0):
    """Serve in a thread, and yield the address without the token."""
    app = make_app(session, read, TOKEN, by="Ada")
    config = uvicorn.Config(app, host="127.0.0.1", port=port, ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
