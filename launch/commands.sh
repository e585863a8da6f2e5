# What the scripts of launch/ do alike with their arguments: --dry-run, --help, and variables that must be set.
# Sourced, and written for bash 3.2 too, which is what macOS has.
# shellcheck shell=bash
# shellcheck disable=SC2034 # read_arguments and split_flags set variables for the script that sources this

dry_run=false
flags=()

# The header comment of the script, as --help shows it.
show_help() {
  awk 'NR > 1 { if (!/^#( |$)/) exit; sub(/^# ?/, ""); print }' "$0"
}

# Sets dry_run, and flags to all other arguments. --dry-run counts wherever it stands: a run that
# was only to be looked at must not start because a flag came before it.
read_arguments() {
  local argument
  for argument in "$@"; do
    case $argument in
      --dry-run) dry_run=true ;;
      -h | --help)
        show_help
        exit 0
        ;;
      *) flags+=("$argument") ;;
    esac
  done
}

# Where there is a `--`: sets first to the arguments before it, flags to those after it.
split_flags() {
  local i
  first=()
  for ((i = 0; i < ${#flags[@]}; i++)); do
    if [ "${flags[i]}" = -- ]; then
      [ "$i" -eq 0 ] || first=("${flags[@]:0:i}")
      if [ $((i + 1)) -eq ${#flags[@]} ]; then flags=(); else flags=("${flags[@]:i+1}"); fi
      return
    fi
  done
}

# Says what is wrong with the call, in one line, and ends.
refuse() {
  echo "error: $1" >&2
  exit 2
}

# Ends unless every variable named is set, naming all that are not.
need() {
  local name missing=""
  for name in "$@"; do
    [ -n "${!name:-}" ] || missing="$missing${missing:+, }$name"
  done
  [ -z "$missing" ] || refuse "not set: $missing; set them in the environment ($0 --help says what they are)"
}

# Ends unless the script was given no other arguments.
take_no_flags() {
  [ "${#flags[@]}" -eq 0 ] || refuse "'${flags[0]}' is no argument of $0: it takes --dry-run and --help"
}

# Ends unless the variable is a whole number.
need_number() {
  [[ ${!1} =~ ^[0-9]+$ ]] || refuse "$1='${!1}' is no whole number: set $1=20, say"
}

# The words as a line of shell that gives the same words again, through ssh too.
quoted() {
  local word line=""
  for word in "$@"; do
    line="$line${line:+ }$(printf '%q' "$word")"
  done
  printf '%s' "$line"
}

# Runs a command; with --dry-run prints it.
run() {
  if [ "$dry_run" = true ]; then
    printf '%s\n' "$(quoted "$@")"
  else
    "$@"
  fi
}
