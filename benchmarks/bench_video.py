"""A video by predict.py against its slowest stage alone: reading, predicting, drawing, encoding.

    python benchmarks/bench_video.py            60 frames of 1024x512, one thread a stage

Wall time, medians of interleaved rounds; the network is random, its cost is what counts. Needs an
idle machine.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import cv2
import numpy as np
import torch

from benchmarks.measure import CPU, machine
from evaluation.inference import Predictor
from evaluation.visualize import panel_size, panels
from model import build_model
from predict import write_video
from utils.labels import CITYSCAPES
from utils.video import VideoReader, VideoWriter

FRAMES, SIZE, ROUNDS = 60, (512, 1024), 5


def main() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    model = build_model("deeplabv3", num_classes=19, output_stride=32, head_channels=64)
    predictor = Predictor(model, device=CPU)
    with tempfile.TemporaryDirectory() as folder:
        clip, result = Path(folder) / "clip.webm", Path(folder) / "result.webm"
        noise = np.random.default_rng(0).integers(0, 256, (9, 18, 3), np.uint8)
        scene = cv2.resize(noise, SIZE[::-1], interpolation=cv2.INTER_CUBIC)
        with VideoWriter(clip, rate=17) as writer:
            for number in range(FRAMES):
                writer.write(np.roll(scene, 8 * number, 1))
        frames = list(VideoReader(clip))
        labels = [predictor.labels(frame, size=panel_size(SIZE)) for frame in frames]
        drawn = [panels(*pair, CITYSCAPES) for pair in zip(frames, labels, strict=True)]

        def encode() -> None:
            with VideoWriter(result, rate=17) as writer:
                for frame in drawn:
                    writer.write(frame)

        def whole() -> None:
            write_video(result, VideoReader(clip), FRAMES, 17, predictor, CITYSCAPES)

        stages = {
            "reading": lambda: list(VideoReader(clip)),
            "predicting": lambda: [predictor.labels(x, size=panel_size(SIZE)) for x in frames],
            "drawing": lambda: [panels(*x, CITYSCAPES) for x in zip(frames, labels, strict=True)],
            "encoding": encode,
            "all overlapped": whole,
        }
        seconds: dict[str, list[float]] = {name: [] for name in stages}
        for _ in range(ROUNDS):
            for name, stage in stages.items():
                begin = time.perf_counter()
                stage()
                seconds[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    *alone, together = medians.values()
    print(f"{machine(CPU)}, torch {torch.__version__}, OpenCV {cv2.__version__}, n = {ROUNDS}")
    for name, value in medians.items():
        print(f"{name:15s} {1000 * value / FRAMES:6.1f} ms a frame")
    shares = f"{together / max(alone):.2f} x the slowest stage, {together / sum(alone):.2f} x all"
    print(f"overlapped: {shares}")


if __name__ == "__main__":
    main()
