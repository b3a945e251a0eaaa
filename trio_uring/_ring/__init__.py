"""Operations, the table of opcodes, the protocol of rings and the kernel's ring. No task, no trio:
safety ends here."""
