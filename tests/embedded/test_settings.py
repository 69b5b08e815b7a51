"""What the parent tells the engine's process."""

from aicortex.embedded.settings import Settings


def test_settings_survive_the_way_to_the_child():
    """What is written is read back, text outside ASCII included."""
    settings = Settings("/päth/a.gguf", "mödel", "", "::1", 0, 2, None, 7)
    assert Settings.from_json(settings.to_json()) == settings
