"""The studio: the browser pages of `lensmith studio`, from a folder of pictures to an answering API.

Its process imports no torch: whatever needs it is a job (a child process, see `studio.jobs`). Pages hold no state;
all of it is in the workspace folder.
"""
