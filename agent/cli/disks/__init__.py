"""`quarry disks`: what there is, and what is done with it. `commands` has the group and its listing."""
