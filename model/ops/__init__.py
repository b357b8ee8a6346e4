"""Operations on upsampled logits that do not hold the full-size logits in memory."""
