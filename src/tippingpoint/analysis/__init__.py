"""What measurements mean: tipping points, cost over a person's own lengths, a recommendation. No torch."""
