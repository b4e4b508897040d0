"""How long an artifact takes, measured fairly against others."""
