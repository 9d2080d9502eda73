"""What both programs are built on: settings, database, audit, logs, command line, gunicorn."""
