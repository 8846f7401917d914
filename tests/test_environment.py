"""Claims about what the system is asked."""

from igpt_tf import environment


def test_memory_is_unlimited_where_the_system_does_not_say(tmp_path):
    assert environment.available_bytes(str(tmp_path / "none")) == float("inf")
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:  7 kB\n")
    assert environment.available_bytes(str(tmp_path / "meminfo")) == 7168
