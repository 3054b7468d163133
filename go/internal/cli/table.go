package cli

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// columnGap is the number of blanks between columns.
const columnGap = 4

// writeTable prints rows in aligned columns, each line after indent.
func writeTable(w io.Writer, indent string, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 0, columnGap, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(tw, indent+strings.Join(row, "\t"))
	}
	return tw.Flush()
}
