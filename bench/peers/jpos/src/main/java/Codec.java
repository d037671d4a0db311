import java.util.Arrays;
import java.util.TreeMap;
import java.util.Map;
import org.jpos.iso.ISOMsg;
import org.jpos.iso.packager.ISO87APackager;

/**
 * Decoding and encoding of one message with jPOS, on one thread.
 *
 * <p>Arguments: the frame in hexadecimal, rounds, seconds a round, then element=value of each
 * element. Prints a line of JSON for each round; what is wrong with the message ends it.
 */
public final class Codec {
    private static final int BATCH = 64;
    private static Object kept; // so that nothing is optimised away

    private interface Way {
        void once() throws Exception;
    }

    public static void main(String[] arguments) throws Exception {
        byte[] frame = bytes(arguments[0]);
        int rounds = Integer.parseInt(arguments[1]);
        double seconds = Double.parseDouble(arguments[2]);
        Map<Integer, String> elements = new TreeMap<>();
        for (int i = 3; i < arguments.length; i++) {
            int equals = arguments[i].indexOf('=');
            elements.put(
                Integer.valueOf(arguments[i].substring(0, equals)),
                arguments[i].substring(equals + 1));
        }
        ISO87APackager packager = new ISO87APackager();
        check(frame, elements, packager);
        Way decode = () -> kept = decoded(frame, packager);
        Way all = () -> {
            ISOMsg message = decoded(frame, packager);
            String[] values = new String[elements.size()];
            int at = 0;
            for (int element : elements.keySet()) {
                values[at++] = message.getString(element);
            }
            kept = values;
        };
        Way encode = () -> kept = encoded(elements, packager);
        Way turn = () -> {
            ISOMsg message = decoded(frame, packager);
            message.setResponseMTI();
            message.set(38, "A12345");
            message.set(39, "00");
            kept = message.pack();
        };
        for (int round = -2; round < rounds; round++) { // two rounds warm the compiler up
            String told = String.format(
                "{\"decode\":%.0f,\"all\":%.0f,\"encode\":%.0f,\"turn\":%.0f}",
                rate(decode, seconds), rate(all, seconds), rate(encode, seconds),
                rate(turn, seconds));
            if (round >= 0) {
                System.out.println(told);
            }
        }
    }

    private static ISOMsg decoded(byte[] frame, ISO87APackager packager) throws Exception {
        ISOMsg message = new ISOMsg();
        message.setPackager(packager);
        message.unpack(frame);
        return message;
    }

    private static byte[] encoded(Map<Integer, String> elements, ISO87APackager packager)
            throws Exception {
        ISOMsg message = new ISOMsg("0200");
        message.setPackager(packager);
        for (Map.Entry<Integer, String> element : elements.entrySet()) {
            message.set(element.getKey(), element.getValue());
        }
        return message.pack();
    }

    private static void check(byte[] frame, Map<Integer, String> elements, ISO87APackager packager)
            throws Exception {
        ISOMsg message = decoded(frame, packager);
        for (Map.Entry<Integer, String> element : elements.entrySet()) {
            if (!element.getValue().equals(message.getString(element.getKey()))) {
                throw new IllegalStateException("element " + element.getKey() + " differs");
            }
        }
        if (!Arrays.equals(encoded(elements, packager), frame)) {
            throw new IllegalStateException("the encoded message differs");
        }
    }

    private static double rate(Way way, double seconds) throws Exception {
        long began = System.nanoTime();
        long end = began + (long) (seconds * 1e9);
        long count = 0;
        long now = began;
        while (now < end) {
            for (int i = 0; i < BATCH; i++) {
                way.once();
            }
            count += BATCH;
            now = System.nanoTime();
        }
        return count * 1e9 / (now - began);
    }

    private static byte[] bytes(String hex) {
        byte[] found = new byte[hex.length() / 2];
        for (int i = 0; i < found.length; i++) {
            found[i] = (byte) Integer.parseInt(hex.substring(2 * i, 2 * i + 2), 16);
        }
        return found;
    }
}
