# SPDX-License-Identifier: Apache-2.0
# Completion of vfsd(1) in fish.

complete -c vfsd -n __fish_use_subcommand -l help
complete -c vfsd -n __fish_use_subcommand -l version
# commands: scripts/docs.py
complete -c vfsd -f -n __fish_use_subcommand -a list -d 'list the running virtio-fs daemons of this host'
complete -c vfsd -n '__fish_seen_subcommand_from list' -l help
complete -c vfsd -n '__fish_seen_subcommand_from list' -l json
complete -c vfsd -n '__fish_seen_subcommand_from list' -l names
complete -c vfsd -f -n __fish_use_subcommand -a status -d 'show what a daemon is doing: share, guest, queues, processes, protections'
complete -c vfsd -n '__fish_seen_subcommand_from status' -l help
complete -c vfsd -n '__fish_seen_subcommand_from status' -l timeout
complete -c vfsd -n '__fish_seen_subcommand_from status' -l json
complete -c vfsd -n '__fish_seen_subcommand_from status' -f -a "(vfsd list --names 2>/dev/null)"
complete -c vfsd -f -n __fish_use_subcommand -a top -d 'show the requests of a guest: rates, bytes and latencies of operations and workers'
complete -c vfsd -n '__fish_seen_subcommand_from top' -l help
complete -c vfsd -n '__fish_seen_subcommand_from top' -l timeout
complete -c vfsd -n '__fish_seen_subcommand_from top' -l json
complete -c vfsd -n '__fish_seen_subcommand_from top' -l once
complete -c vfsd -n '__fish_seen_subcommand_from top' -l interval
complete -c vfsd -n '__fish_seen_subcommand_from top' -f -a "(vfsd list --names 2>/dev/null)"
complete -c vfsd -f -n __fish_use_subcommand -a logs -d 'show the latest lines of a daemon\'s log, and follow it'
complete -c vfsd -n '__fish_seen_subcommand_from logs' -l help
complete -c vfsd -n '__fish_seen_subcommand_from logs' -l timeout
complete -c vfsd -n '__fish_seen_subcommand_from logs' -l json
complete -c vfsd -n '__fish_seen_subcommand_from logs' -l follow
complete -c vfsd -n '__fish_seen_subcommand_from logs' -f -a "(vfsd list --names 2>/dev/null)"
complete -c vfsd -f -n __fish_use_subcommand -a set -d 'change a setting of a running daemon'
complete -c vfsd -n '__fish_seen_subcommand_from set' -l help
complete -c vfsd -n '__fish_seen_subcommand_from set' -l timeout
complete -c vfsd -n '__fish_seen_subcommand_from set' -f -a "(vfsd list --names 2>/dev/null) log-level off error warn info debug"
complete -c vfsd -f -n __fish_use_subcommand -a worker -d 'have a worker of a daemon killed and created again'
complete -c vfsd -n '__fish_seen_subcommand_from worker' -l help
complete -c vfsd -n '__fish_seen_subcommand_from worker' -l timeout
complete -c vfsd -n '__fish_seen_subcommand_from worker' -f -a "(vfsd list --names 2>/dev/null) restart"
complete -c vfsd -f -n __fish_use_subcommand -a stop -d 'end a daemon and its share'
complete -c vfsd -n '__fish_seen_subcommand_from stop' -l help
complete -c vfsd -n '__fish_seen_subcommand_from stop' -l timeout
complete -c vfsd -n '__fish_seen_subcommand_from stop' -f -a "(vfsd list --names 2>/dev/null)"
complete -c vfsd -f -n __fish_use_subcommand -a mount -d 'mount a virtio-fs back-end on this host, without a VM'
complete -c vfsd -n '__fish_seen_subcommand_from mount' -l help
complete -c vfsd -n '__fish_seen_subcommand_from mount' -l source
complete -c vfsd -n '__fish_seen_subcommand_from mount' -l queues
complete -c vfsd -n '__fish_seen_subcommand_from mount' -l queue-size
complete -c vfsd -n '__fish_seen_subcommand_from mount' -l poll-us
complete -c vfsd -f -n __fish_use_subcommand -a upgrade -d 'replace a running daemon by the installed version, without its VM'
complete -c vfsd -n '__fish_seen_subcommand_from upgrade' -l help
complete -c vfsd -n '__fish_seen_subcommand_from upgrade' -l dry-run
complete -c vfsd -n '__fish_seen_subcommand_from upgrade' -l timeout
complete -c vfsd -n '__fish_seen_subcommand_from upgrade' -f -a "(vfsd list --names 2>/dev/null)"
complete -c vfsd -f -n __fish_use_subcommand -a bench -d 'measure a virtio-fs back-end, or several against each other'
complete -c vfsd -n '__fish_seen_subcommand_from bench' -l help
complete -c vfsd -n '__fish_seen_subcommand_from bench' -l op
complete -c vfsd -n '__fish_seen_subcommand_from bench' -l depth
complete -c vfsd -n '__fish_seen_subcommand_from bench' -l queues
complete -c vfsd -n '__fish_seen_subcommand_from bench' -l seconds
complete -c vfsd -n '__fish_seen_subcommand_from bench' -l poll
complete -c vfsd -n '__fish_seen_subcommand_from bench' -l pid
complete -c vfsd -n '__fish_seen_subcommand_from bench' -l json
complete -c vfsd -n '__fish_seen_subcommand_from bench' -l compare
complete -c vfsd -n '__fish_seen_subcommand_from bench' -l rows
complete -c vfsd -n '__fish_seen_subcommand_from bench' -l rounds
complete -c vfsd -n '__fish_seen_subcommand_from bench' -l peer
complete -c vfsd -n '__fish_seen_subcommand_from bench' -l ours-args
complete -c vfsd -n '__fish_seen_subcommand_from bench' -l dir
complete -c vfsd -n '__fish_seen_subcommand_from bench' -l real-work
complete -c vfsd -n '__fish_seen_subcommand_from bench' -l count
complete -c vfsd -n '__fish_seen_subcommand_from bench' -l chart
complete -c vfsd -n '__fish_seen_subcommand_from bench' -l markdown
# end
