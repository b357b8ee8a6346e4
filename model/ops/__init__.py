"""Operations on logits that would otherwise be materialised at full size."""
