"""The code location: components, definitions, jobs, schedules, sensors, launchers, worker and command line."""
