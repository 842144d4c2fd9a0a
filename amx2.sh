taskset -c 0 /tmp/amx >/tmp/amx0 & taskset -c 1 /tmp/amx | head -4; wait
