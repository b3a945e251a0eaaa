"""Where there is no io_uring at all: other platforms, and installations without C."""
