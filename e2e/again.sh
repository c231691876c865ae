# To be sourced: what downloads, as `go build` does, is tried twice more when it fails.
again() {
	local pause
	for pause in 10 30; do
		"$@" && return
		echo "$*: failed; once more in $pause s" >&2
		sleep "$pause"
	done
	"$@"
}
