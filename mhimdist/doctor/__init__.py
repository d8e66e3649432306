"""The doctor: looks at a machine before it trains, and says what to mend."""
