from benchmarks import config_page


def test_the_page_of_keys_is_what_the_definitions_make():
    assert config_page.PAGE.read_text(encoding="utf-8") == config_page.page(), "run python benchmarks/config_page.py"
