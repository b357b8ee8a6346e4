"""Operations that take less time or memory here than in PyTorch."""
