"""The page in a real browser (headless Chromium): a clip is made and can be heard, and a bad input is told."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "pretrain" / "generate"))

from fake_tokenizers import TOKENIZERS
from tiny_requests import CONFIG, VOCABULARY, tiny_model

from uniaudio.configs.data import DataConfig
from uniaudio.configs.run import RunConfig
from uniaudio.configs.train import TrainConfig
from uniaudio.pretrain.generate import api
from uniaudio.pretrain.generate.api import Generator
from uniaudio.pretrain.generate.web import launch, make_page

pytest.importorskip("gradio", reason="the extra `web` is not installed")
webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
By = pytest.importorskip("selenium.webdriver.common.by").By
WebDriverWait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait
CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="Debian packages chromium and chromium-driver are not installed"),
]
WAIT = 120


@pytest.fixture(scope="module")
def address():
    patch = pytest.MonkeyPatch()
    patch.setattr(api, "make_tokenizers", lambda recorded, task: dict(TOKENIZERS))
    data = DataConfig(shards="nowhere", tasks=("sound", "tts"), prompt_seconds=0.2)
    run = RunConfig(model=CONFIG, data=data, train=TrainConfig(output_dir="nowhere", steps=1))
    page = make_page(Generator(tiny_model(), run, VOCABULARY, {}, rows=2))
    yield launch(page, 0)
    page.close()
    patch.undo()


@pytest.fixture
def browser(address):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1400,1000"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    driver.get(address)
    yield driver
    driver.quit()


def find(browser, css: str):
    return WebDriverWait(browser, WAIT).until(lambda page: page.find_element(By.CSS_SELECTOR, css))


def test_a_described_sound_is_made_and_can_be_heard(browser):
    find(browser, "#sound-text textarea, #sound-text input").send_keys("rain on a roof")
    find(browser, "#sound-generate").click()
    told = "document.querySelector('#sound-told textarea, #sound-told input')?.value"
    WebDriverWait(browser, WAIT).until(lambda page: page.execute_script(f"return {told}"))
    assert " s, " in browser.execute_script(f"return {told}")
    source = "document.querySelector('#sound-audio audio')?.src || document.querySelector('#sound-audio a[download]')?.href"
    url = WebDriverWait(browser, WAIT).until(lambda page: page.execute_script(f"return {source}"))
    seconds = browser.execute_async_script(
        "const done = arguments[1]; fetch(arguments[0]).then(r => r.arrayBuffer()).then(b => new OfflineAudioContext(1, 1, 16000)"
        ".decodeAudioData(b)).then(sound => done(sound.duration)).catch(error => done(String(error)))",
        url,
    )
    assert 0.2 <= float(seconds) <= 20
    assert find(browser, "#sound-picture img").get_attribute("src")


def test_a_bad_input_is_told(browser):
    find(browser, "#sound-generate").click()
    WebDriverWait(browser, WAIT).until(lambda page: "needs words" in page.find_element(By.TAG_NAME, "body").text)


def test_the_page_is_on_this_machine_alone(address):
    assert address.startswith("http://127.0.0.1:")
