"""What happens to the amounts in the compartments: dosing schedules and closed forms of linear disposition."""
