"""What makes a function a job: its run, its claim, its checkpoints, and the record that it leaves."""
