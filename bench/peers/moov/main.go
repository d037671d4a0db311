// Decoding and encoding of one message with moov-io/iso8583, on one thread.
//
// Arguments: the frame in hexadecimal, rounds, seconds a round, then element=value of each element.
// Prints a line of JSON for each round; what is wrong with the message ends it.
package main

import (
	"encoding/hex"
	"encoding/json"
	"log"
	"maps"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/moov-io/iso8583"
	"github.com/moov-io/iso8583/encoding"
	"github.com/moov-io/iso8583/field"
	"github.com/moov-io/iso8583/prefix"
	"github.com/moov-io/iso8583/specs"
)

const batch = 64

var kept any // so that nothing is optimised away

// The library's own specification, but with one bitmap where one is enough, as in our message.
var spec = func() *iso8583.MessageSpec {
	fields := maps.Clone(specs.Spec87ASCII.Fields)
	fields[1] = field.NewBitmap(&field.Spec{
		Length: 8,
		Enc:    encoding.BytesToASCIIHex,
		Pref:   prefix.Hex.Fixed,
	})
	return &iso8583.MessageSpec{Name: specs.Spec87ASCII.Name, Fields: fields}
}()

type element struct {
	number int
	value  string
}

func main() {
	runtime.GOMAXPROCS(1)
	frame, err := hex.DecodeString(os.Args[1])
	must(err)
	rounds, err := strconv.Atoi(os.Args[2])
	must(err)
	seconds, err := strconv.ParseFloat(os.Args[3], 64)
	must(err)
	var elements []element
	for _, argument := range os.Args[4:] {
		number, value, _ := strings.Cut(argument, "=")
		n, err := strconv.Atoi(number)
		must(err)
		elements = append(elements, element{n, value})
	}
	check(frame, elements)
	ways := map[string]func(){
		"decode": func() { kept = decoded(frame) },
		"all": func() {
			message := decoded(frame)
			values := make([]string, 0, len(elements))
			for _, e := range elements {
				value, err := message.GetString(e.number)
				must(err)
				values = append(values, value)
			}
			kept = values
		},
		"encode": func() { kept = encoded(elements) },
		"turn": func() {
			message := decoded(frame)
			message.MTI("0210")
			must(message.Field(38, "A12345"))
			must(message.Field(39, "00"))
			kept = packed(message)
		},
	}
	for round := -1; round < rounds; round++ {
		rates := map[string]int64{}
		for name, way := range ways {
			rates[name] = rate(way, seconds)
		}
		if round >= 0 {
			must(json.NewEncoder(os.Stdout).Encode(rates))
		}
	}
}

func decoded(frame []byte) *iso8583.Message {
	message := iso8583.NewMessage(spec)
	must(message.Unpack(frame))
	return message
}

func encoded(elements []element) []byte {
	message := iso8583.NewMessage(spec)
	message.MTI("0200")
	for _, e := range elements {
		must(message.Field(e.number, e.value))
	}
	return packed(message)
}

func packed(message *iso8583.Message) []byte {
	frame, err := message.Pack()
	must(err)
	return frame
}

func check(frame []byte, elements []element) {
	message := decoded(frame)
	for _, e := range elements {
		value, err := message.GetString(e.number)
		must(err)
		// Numeric elements come without the zeros that fill them.
		if strings.TrimLeft(value, "0") != strings.TrimLeft(e.value, "0") {
			log.Fatalf("element %d is %q", e.number, value)
		}
	}
	if again := encoded(elements); string(again) != string(frame) {
		log.Fatalf("the encoded message differs: %q", again)
	}
}

func rate(way func(), seconds float64) int64 {
	began := time.Now()
	count := 0
	for time.Since(began).Seconds() < seconds {
		for range batch {
			way()
		}
		count += batch
	}
	return int64(float64(count) / time.Since(began).Seconds())
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
