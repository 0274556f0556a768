"""`uniaudio web`: a page on this machine to try each task of a checkpoint and hear it. Reachable from this machine alone.

Owns the page; what a button does is `Generator.generate`. Needs the extra `web` (Gradio).
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any, get_args

import click
import numpy as np

from uniaudio.errors import MissingDependency, UserError
from uniaudio.pretrain.generate.api import Generator, Options, Precision
from uniaudio.pretrain.generate.inputs import Inputs, input_names
from uniaudio.pretrain.generate.pictures import draw_clip
from uniaudio.pretrain.generate.request import FRAME_RATE
from uniaudio.pretrain.sampling import Sampling
from uniaudio.tokenize_farm.audio import SAMPLE_RATE

ADDRESS = "127.0.0.1"
LABELS = {
    "text": "Words, or what is to be heard",
    "phones": "Phonemes instead of words",
    "instruction": "Instruction",
    "language": "Language of the words (en, fr, ...)",
    "source": "Recording to convert, clean or edit",
    "prompt": "Recording of the speaker to imitate",
    "alignment": "TextGrid or CTM with the times of the words (optional)",
    "midi": "MIDI file with the notes (optional)",
    "replace": "old words=new words",
}
RECORDINGS, FILES = ("source", "prompt"), ("alignment", "midi")


@click.command()
@click.option("--checkpoint", required=True, type=click.Path(path_type=Path), help="Checkpoint folder, export folder, or a run's.")
@click.option("--port", default=7860, show_default=True, help="0: a free one.")
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--precision", default="fp32", show_default=True, type=click.Choice(get_args(Precision)))
def web(checkpoint: Path, port: int, device: str, precision: Precision) -> None:
    """Try a checkpoint's tasks in a browser, on this machine alone.

    Example: uniaudio web --checkpoint work/demo/run
    """
    _gradio()  # before the model is loaded
    generator = Generator.load(checkpoint, device=device, precision=precision, rows=2)
    page = make_page(generator)
    click.echo(f"the page: http://{ADDRESS}:{port or 'a free port, named below'}; end it with Ctrl-C")
    launch(page, port)
    page.block_thread()


def _gradio() -> Any:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # it would call home
    try:
        import gradio
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise MissingDependency("gradio", needed_for="uniaudio web", extra="web") from error
    return gradio


def launch(page: Any, port: int) -> str:
    """Serves the page beside this thread; its address. UserError where the port is taken."""
    try:
        _, address, _ = page.launch(server_name=ADDRESS, server_port=port or free_port(), share=False, prevent_thread_lock=True, quiet=True)
    except OSError as error:
        raise UserError("the port is taken", seen=port, remedy="another --port, or 0 for a free one") from error
    return str(address)


def free_port() -> int:
    """A port that nobody uses now."""
    from uniaudio.pretrain import launch as processes

    return processes.free_port()


def make_page(generator: Generator) -> Any:
    """The page (gradio.Blocks): a tab for each task that makes audio."""
    gradio = _gradio()
    lock, folder = Lock(), tempfile.TemporaryDirectory(prefix="uniaudio-web-")
    with gradio.Blocks(title="UniAudio", analytics_enabled=False) as page:
        gradio.Markdown("# UniAudio")
        for name in generator.uses("score"):
            with gradio.Tab(name, elem_id=f"tab-{name}"):
                _tab(gradio, generator, name, lock, folder)
    page.folder = folder  # lives as long as the page
    return page


def _tab(gradio: Any, generator: Generator, name: str, lock: Lock, folder: "tempfile.TemporaryDirectory[str]") -> None:
    names = input_names(generator.task(name))
    with gradio.Row():
        with gradio.Column():
            given = [_input(gradio, field, f"{name}-{field}") for field in names]
            with gradio.Accordion("How to draw", open=False):
                draws = [
                    gradio.Number(0, label="Seed", precision=0),
                    gradio.Slider(0, 2, 0.8, label="Temperature (0: greedy)"),
                    gradio.Slider(1, 1024, 30, step=1, label="Top-k"),
                    gradio.Slider(0.05, 1, 1, label="Top-p"),
                    gradio.Slider(0, 10, 1, label="Guidance (1: off)"),
                    gradio.Number(None, label="At most so many seconds (empty: the task's own)"),
                ]
            button = gradio.Button("Generate", variant="primary", elem_id=f"{name}-generate")
        with gradio.Column():
            outputs = [
                gradio.Audio(label="Sound", elem_id=f"{name}-audio", interactive=False),
                gradio.Image(label="Waveform, spectrogram, codes", interactive=False, elem_id=f"{name}-picture"),
                gradio.Textbox(label="Told", elem_id=f"{name}-told", interactive=False),
            ]
    button.click(_action(gradio, generator, name, names, lock, Path(folder.name)), [*given, *draws], outputs)


def _input(gradio: Any, field: str, element: str) -> Any:
    if field in RECORDINGS:
        return gradio.Audio(type="filepath", label=LABELS[field], elem_id=element)
    if field in FILES:
        return gradio.File(label=LABELS[field], elem_id=element)
    return gradio.Textbox("en" if field == "language" else "", label=LABELS[field], elem_id=element)


def _action(gradio: Any, generator: Generator, name: str, names: tuple[str, ...], lock: Lock, folder: Path) -> Callable[..., Any]:
    """What the button does; one clip at a time, and what is wrong with the inputs becomes the page's message."""

    def act(*values: Any) -> tuple[Any, str, str]:
        given, (seed, temperature, top_k, top_p, guidance, seconds) = values[: len(names)], values[len(names) :]
        inputs = Inputs(**{field: _value(field, value) for field, value in zip(names, given, strict=True)})
        picture = folder / f"{name}.png"
        try:
            sampling = Sampling(top_k=int(top_k), temperature=temperature, top_p=top_p, guidance=guidance)
            with lock:
                clip = generator.generate(name, inputs, Options(sampling, seed=int(seed or 0), max_seconds=seconds or None))
                draw_clip(picture, clip.samples, clip.codes_TQ, name)
        except UserError as error:
            raise gradio.Error(str(error), print_exception=False) from error
        pcm = np.clip(np.round(clip.samples * 32_768), -32_768, 32_767).astype(np.int16)
        told = f"{len(clip.codes_TQ) / FRAME_RATE:.2f} s, {'ended by the model' if clip.stopped else 'at its longest'}"
        return (SAMPLE_RATE, pcm), str(picture), told

    return act


def _value(field: str, value: Any) -> Any:
    """An empty box is nothing given."""
    if not value:
        return "" if field == "text" else None
    return Path(value) if field in (*RECORDINGS, *FILES) else value
