package server

import "regexp"

// The texts of encoding/json name the place of a wrong value; Go 1.27 leaves out embedded structs and counts elements.
var (
	jsonEmbedded = regexp.MustCompile(`\.(Generate|Chat|Create|Embed|Show)Request\.`)
	jsonElement  = regexp.MustCompile(`\.\d+\.`)
)

// anyGo brings an error text into the form that it has under every version of Go.
func anyGo(text string) string {
	return jsonElement.ReplaceAllString(jsonEmbedded.ReplaceAllString(text, "."), ".")
}
